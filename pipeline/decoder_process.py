"""Decode in a process of its own: a file that kills its decoder costs that file, no other."""

import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.decode import BadImage, DecodeSettings, Origin, Picture
from pipeline.decoder_child import OUT_OF_MEMORY, TooLongError, receive, send
from pipeline.resize import Size
from schemas.errors import SegmillError

_ATTEMPTS: Final = 2  # each in a fresh process, so that what another file left behind is no reason
_START_TIMEOUT_S: Final = 120.0
# Limits are processor time; a decoder that waits for ever uses none. A busy machine is no reason.
_WAIT_FACTOR: Final = 20
_LONGEST_ANSWER: Final = 2**16
# All that the child sees of our environment: no credentials, nothing that changes how it decodes.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# By itself glibc gives back what a picture took and asks for it again for the next one: to fill
# memory that is new to a process takes longer than to decode a small photo.
_KEPT_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_COMMAND: Final = ("-P", "-m", "pipeline.decoder_child")

logger = logging.getLogger(__name__)


@cache
def decoder_of_this_process(settings: DecodeSettings) -> "Decoder":
    """Return the one decoder of these settings; it lives as long as this process."""
    return Decoder(settings)


class Decoder:
    """Decodes files one after the other in a child process, started when needed and replaced.

    A file during which the child dies (a crash, the limits on memory and time) is tried once more
    in a fresh child and then given up.
    """

    def __init__(self, settings: DecodeSettings, command: Sequence[str] = _COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self.deaths = 0  # of children, while they decoded

    def __call__(self, data: bytes) -> Picture:
        """Return the picture in a file; raises BadImage for what is none, or is too expensive.

        Raises SegmillError where no child can be started.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._child = self._child or _Child(self._settings, self._command)
                try:
                    return self._child.decode(data)
                except BadImage as bad:
                    if bad.code != "out_of_memory":
                        raise
                    # Perhaps other files left too little of it: a fresh child has all of it.
                    verdict = bad
                except (OSError, EOFError, ValueError, KeyError, TypeError, TooLongError) as error:
                    self.deaths += 1
                    verdict = self._child.end(self._settings, error)
                    logger.warning("a decoder process died: %s (%s)", verdict.code, verdict)
                self.close()
            raise verdict

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    def __init__(self, settings: DecodeSettings, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        shared = os.memfd_create("pixels")
        try:
            size = settings.short_edge * settings.long_edge * 3
            os.ftruncate(shared, size)
            self._pixels = mmap.mmap(shared, size)
            self._channel = ours
            self._process = _start(command, theirs.fileno(), shared, settings)
        finally:
            os.close(shared)
            theirs.close()
        self.close = weakref.finalize(self, _close, self._process, ours, self._pixels)
        errors = self._process.stderr
        assert errors is not None
        self._await_start(errors)
        ours.settimeout(settings.max_seconds * _WAIT_FACTOR)

    def _await_start(self, errors: IO[bytes]) -> None:
        self._channel.settimeout(_START_TIMEOUT_S)
        try:
            receive(self._channel, _LONGEST_ANSWER)
        except (OSError, EOFError):
            self._process.kill()
            lines = errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            reason = lines[-1] if lines else f"exit code {self._process.returncode}"
            raise SegmillError(f"the decoder process does not start: {reason}") from None
        finally:
            errors.close()

    def decode(self, data: bytes) -> Picture:
        """Ask the child; any exception but BadImage means that it died or makes no sense."""
        send(self._channel, data)
        answer: dict[str, Any] = json.loads(receive(self._channel, _LONGEST_ANSWER))
        if "code" in answer:
            raise BadImage(str(answer["code"]), str(answer["message"]))
        height, width = map(int, answer.pop("size"))
        if min(height, width) < 1 or height * width * 3 > len(self._pixels):
            raise ValueError(f"a picture of {height} x {width} pixels")
        frames = None if answer["frames"] is None else int(answer["frames"])
        orientation = int(answer["exif_orientation"])
        origin = Origin(int(answer["height"]), int(answer["width"]), orientation, frames)
        return Picture(self._copy((height, width)), origin)

    def _copy(self, size: Size) -> NDArray[np.uint8]:
        """Return what the child has drawn: it will draw the next picture over it."""
        drawn = np.frombuffer(self._pixels, np.uint8, size[0] * size[1] * 3)
        # Arrow keeps memory that is given back: what is new to a process is slow to fill.
        pixels = np.frombuffer(pa.allocate_buffer(drawn.size), np.uint8)
        pixels[:] = drawn
        return pixels.reshape(*size, 3)

    def end(self, settings: DecodeSettings, error: Exception) -> BadImage:
        """Return what the death of the child, noticed by `error`, says of the file."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = -signal.SIGPROF if isinstance(error, TimeoutError) else 0
        if code == -signal.SIGPROF:
            return BadImage("too_slow", f"decoding took over {settings.max_seconds:g} s")
        if code in (-signal.SIGKILL, OUT_OF_MEMORY):
            return BadImage("out_of_memory", f"decoding took over {settings.max_mb} MiB of memory")
        if code == 0:
            return BadImage("decoder_crashed", f"the decoder sent nonsense: {error}")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return BadImage("decoder_crashed", f"the decoder died of {cause}")


def _start(
    command: Sequence[str], channel: int, shared: int, settings: DecodeSettings
) -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    search = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, *command, str(channel), str(shared), json.dumps(asdict(settings))],
        pass_fds=[channel, shared],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=kept
        | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        | _KEPT_MEMORY,
    )


def _close(process: subprocess.Popen[bytes], channel: socket.socket, pixels: mmap.mmap) -> None:
    channel.close()
    process.kill()
    process.wait()
    pixels.close()
