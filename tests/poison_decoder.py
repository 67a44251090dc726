"""The decoder process with one more format, whose files do to it what their bytes say.

Run by the tests in place of `pipeline.decoder_child`. The format is a Pillow plugin like any other;
the deaths are real.
"""

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress

import numpy as np
from PIL import Image, ImageFile

import pipeline.decode
from pipeline.decode import DecodeSettings
from pipeline.decoder_child import main

_MAGIC = b"POISON "
_loaded = 0
_hoarded: list[object] = []


class PoisonFile(ImageFile.ImageFile):
    format = "POISON"
    format_description = "A file that harms its decoder"

    def _open(self) -> None:
        self.deed = self.fp.read().removeprefix(_MAGIC).decode()
        self._size = (8, 6)
        self._mode = "RGB"

    def load(self) -> None:
        global _loaded
        if self.deed in _DEEDS:
            _loaded += 1
            _DEEDS[self.deed]()
        self.deed = "done"
        self.im = Image.new("RGB", self.size).im


def _spin() -> None:
    while True:
        pass


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _eat() -> None:
    kept = []
    while True:
        kept.append(np.ones(2**20))


def _hoard() -> None:
    """Leave little memory to the files that come after: 8 MB, room for a small one."""
    with suppress(MemoryError):
        while True:
            _hoarded.append(np.ones(2**20))
    _hoarded.pop()


def _crash_when_worn() -> None:
    if _loaded > 1:
        os.abort()


def _tell_environment() -> None:
    raise OSError(json.dumps(dict(os.environ)))


def _write_a_file() -> None:
    with open("/tmp/segmill-poison", "wb") as file:
        file.write(b"x")


_DEEDS = {
    "nothing": lambda: None,
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "spin": _spin,
    "wait": lambda: time.sleep(3600),
    "kill": _kill_itself,
    "eat": _eat,
    "hoard": _hoard,
    "when worn": _crash_when_worn,
    "environment": _tell_environment,
    "write": _write_a_file,
}

if __name__ == "__main__":
    Image.register_open("POISON", PoisonFile, lambda prefix: prefix.startswith(_MAGIC))
    pipeline.decode.FORMATS = ("POISON", *pipeline.decode.FORMATS)
    main(int(sys.argv[1]), int(sys.argv[2]), DecodeSettings(**json.loads(sys.argv[3])))
