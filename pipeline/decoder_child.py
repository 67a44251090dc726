"""The process that decodes: what it may use, and its conversation with the process that started it.

It is given the bytes of files and answers in JSON; the pixels it leaves in memory that both share,
those of one file behind those of the other. A decoder that a hostile file has taken over can give
wrong pixels, but sends no pickle, and finds no credentials. It imports only Pillow and numpy.
"""

import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from pipeline.decode import BadImage, DecodeSettings, decode_resized

OUT_OF_MEMORY: Final = 112  # exit code
_LENGTH: Final = struct.Struct("!Q")
_JOINED_BYTES: Final = 2**20  # up to here a copy costs less than to wake the reader once more


class TooLongError(Exception):
    """A message is longer than its reader accepts."""


def send(channel: socket.socket, *parts: bytes) -> None:
    """Send one message; raises OSError where the other side has gone."""
    size = sum(map(len, parts))
    pieces = (_LENGTH.pack(size), *parts)
    for piece in pieces if size > _JOINED_BYTES else (b"".join(pieces),):
        channel.sendall(piece)


def receive(channel: socket.socket, longest: int) -> bytearray:
    """Return the next message; raises EOFError where the other side has gone, TooLongError."""
    (length,) = _LENGTH.unpack(_receive(channel, _LENGTH.size))
    if length > longest:
        raise TooLongError(f"a message of {length} bytes, not of {longest} at most")
    return _receive(channel, length)


def _receive(channel: socket.socket, length: int) -> bytearray:
    message = bytearray(length)
    rest = memoryview(message)
    while rest:
        received = channel.recv_into(rest)
        if not received:
            raise EOFError
        rest = rest[received:]
    return message


def send_files(channel: socket.socket, files: Sequence[bytes]) -> None:
    """Send files as one message."""
    send(channel, struct.pack(f"!{1 + len(files)}Q", len(files), *map(len, files)), *files)


def _receive_files(channel: socket.socket) -> Iterator[bytes]:
    message = memoryview(receive(channel, sys.maxsize))
    (count,) = _LENGTH.unpack_from(message)
    start = _LENGTH.size * (1 + count)
    for length in struct.unpack_from(f"!{count}Q", message, _LENGTH.size):
        yield bytes(message[start : start + length])
        start += length


def main(descriptor: int, shared: int, settings: DecodeSettings) -> None:
    """Decode what comes through the socket until it closes; the pixels go to the shared memory."""
    channel = socket.socket(fileno=descriptor)
    canvas = np.frombuffer(mmap.mmap(shared, 0), np.uint8)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    # Here, so that what they take counts as needed to start.
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the task that waits was given one core
    _limit(settings.max_mb)
    send(channel, b"ready")
    # From now on a C library may print; nobody reads it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        while True:
            drawn, answers = 0, []
            for file in _receive_files(channel):
                # The kernel ends this process when the time is over, whatever a decoder is doing.
                signal.setitimer(signal.ITIMER_PROF, settings.max_seconds)
                size, answer = _decode(file, settings, canvas[drawn:])
                signal.setitimer(signal.ITIMER_PROF, 0)
                drawn += size
                answers.append(answer)
            send(channel, json.dumps(answers).encode())
    except (EOFError, ConnectionError):  # nobody is left to decode for
        return
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


def _decode(
    file: bytes, settings: DecodeSettings, canvas: NDArray[np.uint8]
) -> tuple[int, dict[str, Any]]:
    """Draw the picture; return how many bytes of the canvas it takes, and the answer."""
    try:
        picture = decode_resized(file, settings)
    except BadImage as bad:
        return 0, {"code": bad.code, "message": str(bad)}
    pixels = picture.pixels_HW3
    canvas[: pixels.size] = pixels.ravel()
    return pixels.size, {"size": pixels.shape[:2], **asdict(picture.origin)}


def _limit(max_mb: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + max_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a poison image would fill the disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # decoding writes no file
    # If memory runs out all the same, the kernel should end this process and no other.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), DecodeSettings(**json.loads(sys.argv[3])))
