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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import accumulate
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.decode import BadImage, DecodeSettings, Origin, Picture
from pipeline.decoder_child import OUT_OF_MEMORY, receive, send_files
from pipeline.resize import Size
from schemas.errors import SegmillError

_ATTEMPTS: Final = 2  # each in a fresh process, so that what another file left behind is no reason
_START_TIMEOUT_S: Final = 120.0
# Limits are processor time; a decoder that waits for ever uses none. A busy machine is no reason.
_WAIT_FACTOR: Final = 20
_LONGEST_ANSWER: Final = 2**16  # of one file
# Small files go to the child together, and small pictures come back so: to decode one of 100 x 100
# pixels takes no longer than to wake a process and be woken by it.
_MOST_AT_ONCE: Final = 8
_FILES_BYTES: Final = 2**20
_CANVAS_BYTES: Final = 4 * 2**20  # or one picture of the largest size
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
    """Decodes files in a child process, started when needed and replaced.

    A file during which the child dies (a crash, the limits on memory and time) is tried once more
    in a fresh child and then given up.
    """

    def __init__(self, settings: DecodeSettings, command: Sequence[str] = _COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._files_at_once = max(1, min(_MOST_AT_ONCE, _CANVAS_BYTES // _largest(settings)))
        self.deaths = 0  # of children, while they decoded

    def __call__(self, data: bytes) -> Picture:
        """Return the picture in a file; raises BadImage for what is none, or is too expensive.

        Raises SegmillError where no child can be started.
        """
        with self._lock:
            return self._alone(data)

    def each(self, files: Sequence[bytes]) -> Iterator[Picture | BadImage]:
        """Yield what a call returns or raises for each file; small ones go to the child together.

        Raises SegmillError where no child can be started.
        """
        start = 0
        while start < len(files):
            group = self._group(files, start)
            with self._lock:
                found = self._together(group)
            yield from found
            start += len(group)

    def _group(self, files: Sequence[bytes], start: int) -> Sequence[bytes]:
        """Return the files from `start` on that are not too large to travel together."""
        sizes = accumulate(len(file) for file in files[start : start + self._files_at_once])
        fitting = sum(size <= _FILES_BYTES for size in sizes)
        return files[start : start + max(1, fitting)]

    def _together(self, files: Sequence[bytes]) -> list[Picture | BadImage]:
        found: list[Picture | BadImage | None] = [None] * len(files)
        if len(files) > 1:
            self._child = self._child or _Child(self._settings, self._command)
            try:
                found = [*self._child.decode(files)]
            except Exception as error:  # which file it was is found by each alone
                self._give_up(self._child, error)
        return [
            self._verdict(file) if one is None or _is_out_of_memory(one) else one
            for file, one in zip(files, found, strict=True)
        ]

    def _verdict(self, data: bytes) -> Picture | BadImage:
        try:
            return self._alone(data)
        except BadImage as bad:
            return bad

    def _alone(self, data: bytes) -> Picture:
        for _ in range(_ATTEMPTS):
            self._child = self._child or _Child(self._settings, self._command)
            try:
                (found,) = self._child.decode([data])
            except Exception as error:
                verdict = self._give_up(self._child, error)
                continue
            if isinstance(found, Picture):
                return found
            verdict = found
            if not _is_out_of_memory(found):
                break
            self.close()  # perhaps other files left too little of it: a fresh child has all
        raise verdict

    def _give_up(self, child: "_Child", error: Exception) -> BadImage:
        """Return what the death of the child, or nonsense from it, says of its file."""
        self.deaths += 1
        verdict = child.end(self._settings, error)
        logger.warning("a decoder process died: %s (%s)", verdict.code, verdict)
        self.close()
        return verdict

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
            size = max(_CANVAS_BYTES, _largest(settings))
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

    def decode(self, files: Sequence[bytes]) -> list[Picture | BadImage]:
        """Ask the child; any exception means that it died or makes no sense."""
        send_files(self._channel, files)
        answers = json.loads(receive(self._channel, _LONGEST_ANSWER * len(files)))
        if not isinstance(answers, list) or len(answers) != len(files):
            raise ValueError(f"{len(files)} answers were expected")
        sizes = [_size(answer) for answer in answers]
        lengths = [height * width * 3 for height, width in sizes]
        if sum(lengths) > len(self._pixels):
            raise ValueError("more pixels than there is memory for")
        # A copy, for the child will draw the next pictures over them. Arrow keeps memory that is
        # given back: what is new to a process is slow to fill.
        pixels = np.frombuffer(pa.allocate_buffer(sum(lengths)), np.uint8)
        pixels[:] = np.frombuffer(self._pixels, np.uint8, sum(lengths))
        ends = accumulate(lengths)
        return [
            BadImage(str(answer["code"]), str(answer["message"]))
            if "code" in answer
            else Picture(pixels[end - length : end].reshape(*size, 3), _origin(answer))
            for answer, size, length, end in zip(answers, sizes, lengths, ends, strict=True)
        ]

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


def _largest(settings: DecodeSettings) -> int:
    """Return the most bytes that the pixels of a file may have."""
    return settings.short_edge * settings.long_edge * 3


def _is_out_of_memory(found: Picture | BadImage) -> bool:
    return isinstance(found, BadImage) and found.code == "out_of_memory"


def _size(answer: dict[str, Any]) -> Size:
    """Return the size of the picture that was drawn; nothing where there is none."""
    if "code" in answer:
        return 0, 0
    height, width = map(int, answer["size"])
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height} x {width} pixels")
    return height, width


def _origin(answer: dict[str, Any]) -> Origin:
    frames = None if answer["frames"] is None else int(answer["frames"])
    orientation = int(answer["exif_orientation"])
    return Origin(int(answer["height"]), int(answer["width"]), orientation, frames)


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
