"""Damaged image files without end: each must end as a picture or as a verdict, never otherwise.

    python -m tests.fuzz.decode --minutes 30 [--seed 0] [--keep DIRECTORY]

Seeds are small images of every format that Pillow writes here and, where they are at hand, the odd
files of the sample data. What kills the decoder process or escapes is written to DIRECTORY, and its
seed to standard error. Ends with one JSON line; the exit code is 1 when anything escaped.
"""

import argparse
import json
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.decode import FORMATS, BadImage, DecodeSettings
from pipeline.decoder_process import Decoder

SETTINGS = DecodeSettings(
    short_edge=64, long_edge=256, max_pixels=10_000_000, max_frames=1000, max_seconds=5.0,
    max_mb=512, jpeg_draft=False,
)  # fmt: skip
_LARGEST_SEED = 400_000
# Counts, sizes and offsets at which readers stumble.
_NUMBERS = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
_WORDS = (
    b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"eXIf", b"RIFF",
    b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"GIF89a", b"\x21\xf9\x04",
    b"\x2c", b"II*\x00", b"MM\x00*", b"II+\x00", b"\xff\xd8", b"\xff\xc0", b"\xff\xc2", b"\xff\xda",
    b"\xff\xc4", b"\xff\xdb", b"\xff\xe1", b"\xff\xe2MPF\x00", b"Exif\x00\x00", b"ftypavif",
    b"meta", b"iloc", b"iprp", b"ispe", b"av01", b"jp2c", b"ihdr", b"\xff\x4f", b"\xff\x51",
    b"qoif", b"8BPS", b"DDS ", b"BM", b"P6\n", b"P5\n", b"Pf\n", b"\x00\x00\x01\x00",
)  # fmt: skip


@dataclass
class Outcome:
    """What became of the files so far."""

    files: int  # seeds
    mutations: int = 0
    labelled: int = 0
    quarantined: int = 0
    child_crashes: int = 0
    escapes: int = 0
    codes: Counter[str] = field(default_factory=Counter)


def load_seeds(odd: Path | None) -> list[bytes]:
    """Return whole files: made ones, then those of the folder, if there is one."""
    seeds = made_seeds()
    if odd is not None and odd.is_dir():
        paths = sorted(path for path in odd.iterdir() if path.stat().st_size <= _LARGEST_SEED)
        seeds += [path.read_bytes() for path in paths if path.suffix != ".csv"]
    return seeds


def made_seeds() -> list[bytes]:
    """Return small files of every format and kind of pixel that Pillow can write."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 33, 4), dtype=np.uint8)
    colour = Image.fromarray(noise[..., :3].copy())
    modes = [colour, *(colour.convert(mode) for mode in ("L", "1", "P", "CMYK", "RGBA", "I;16"))]
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    options = [{}, {"exif": exif}, frames, {"lossless": True}, {"progressive": True},
               {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "group4"},
               {"compression": "tiff_adobe_deflate"}, {"compression": "RLE"}, {"interlace": 1},
               {"irreversible": True}]  # fmt: skip
    formats = [*FORMATS, "MPO"]
    seeds: dict[bytes, None] = {}
    for format_name in formats:
        for image in modes:
            for option in options:
                buffer = BytesIO()
                try:
                    image.save(buffer, format_name, **option)
                except (OSError, ValueError, KeyError, RuntimeError):
                    continue  # a mode or an option that the format does not have
                seeds[buffer.getvalue()] = None
    return list(seeds)


def mutate(seeds: list[bytes], random_: random.Random) -> bytes:
    """Return one seed with one to a few damages; checksums of half of the PNGs are put right."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.choice((1, 1, 1, 2, 3, 5, 8))):
        random_.choice(_DAMAGES)(data, seeds, random_)
    if data.startswith(b"\x89PNG") and random_.random() < 0.7:
        return _with_checksums(data)
    return bytes(data)


def _place(data: bytearray, random_: random.Random) -> int:
    # Headers hold the numbers that decide most; a broken signature only ends the search early.
    near = random_.random() < 0.4
    first = 0 if random_.random() < 0.1 else min(12, len(data) // 2)
    last = min(len(data), 256) if near else len(data)
    return random_.randrange(first, last) if data else 0


def _flip(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    if data:
        data[_place(data, random_)] ^= 1 << random_.randrange(8)


def _noise(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    at = _place(data, random_)
    data[at : at + 16] = random_.randbytes(random_.randrange(1, 17))


def _number(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    at, size = _place(data, random_), random_.choice((1, 2, 4))
    value = random_.choice(_NUMBERS) & (256**size - 1)
    data[at : at + size] = value.to_bytes(size, random_.choice(("big", "little")))


def _word(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    at, word = _place(data, random_), random_.choice(_WORDS)
    data[at : at + random_.choice((0, len(word)))] = word


def _cut(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    del data[_place(data, random_) :]


def _drop(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    at = _place(data, random_)
    del data[at : at + random_.choice((1, 2, 4, 16, 256))]


def _repeat(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    at = _place(data, random_)
    piece = bytes(data[at : at + random_.choice((1, 4, 32, 512))])
    data[at:at] = piece * random_.choice((1, 2, 20))


def _splice(data: bytearray, seeds: list[bytes], random_: random.Random) -> None:
    other, at = random_.choice(seeds), _place(data, random_)
    start = random_.randrange(len(other))
    piece = other[start : start + random_.choice((8, 64, 1024))]
    data[at : at + random_.choice((0, len(piece)))] = piece


_DAMAGES: tuple[Callable[[bytearray, list[bytes], random.Random], None], ...] = (
    _flip, _noise, _number, _number, _word, _cut, _drop, _repeat, _splice,
)  # fmt: skip


def _with_checksums(data: bytearray) -> bytes:
    whole, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = bytes(data[at + 4 : at + 8 + length])
        checksum = struct.pack(">I", zlib.crc32(body))
        whole += struct.pack(">I", length) + body + checksum
        at += 12 + length
    return bytes(whole)


def fuzz(
    decoder: Decoder, seeds: list[bytes], seed: int, go_on: Callable[[int], bool], keep: Path | None
) -> Outcome:
    """Decode damaged files as long as `go_on` of their number says."""
    outcome = Outcome(files=len(seeds))
    number = 0
    while go_on(number):
        data = mutate(seeds, random.Random(f"{seed}/{number}"))
        deaths, trouble = decoder.deaths, ""
        outcome.mutations += 1
        try:
            pixels_HW3 = decoder(data).pixels_HW3
        except BadImage as bad:
            outcome.quarantined += 1
            outcome.codes[bad.code] += 1
            trouble = f"{bad.code}: {bad}" if decoder.deaths > deaths else ""
        except Exception as error:  # what is searched for
            outcome.escapes += 1
            trouble = f"escaped: {error!r}"
        else:
            outcome.labelled += 1
            if min(pixels_HW3.shape) < 1 or pixels_HW3.shape[2] != 3:
                outcome.escapes += 1
                trouble = f"escaped: shape {pixels_HW3.shape}"
        outcome.child_crashes += decoder.deaths - deaths
        if trouble:
            print(f"seed {seed}/{number}: {trouble}", file=sys.stderr, flush=True)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}.bin").write_bytes(data)
        number += 1
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    default = Path(__file__).resolve().parents[3] / "shared"
    odd = Path(os.environ.get("SEGMILL_SHARED", default)) / "data" / "odd"
    decoder = Decoder(SETTINGS)
    end = time.monotonic() + 60 * arguments.minutes
    outcome = fuzz(
        decoder, load_seeds(odd), arguments.seed, lambda _: time.monotonic() < end, arguments.keep
    )
    decoder.close()
    figures = {**vars(outcome), "codes": dict(outcome.codes.most_common())}
    print(json.dumps({**figures, "minutes": arguments.minutes, "seed": arguments.seed}))
    return 1 if outcome.escapes else 0


if __name__ == "__main__":
    sys.exit(main())
