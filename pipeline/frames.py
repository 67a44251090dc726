"""How many frames or pages an image file has, counted without decoding any of them."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from PIL import Image

# These say in their header how many they have; Pillow reads that while it opens the file.
_DECLARED: Final = frozenset({"AVIF", "MPO", "PNG", "WEBP"})
_GIF_END: Final = 0x3B
_GIF_EXTENSION: Final = 0x21
_GIF_FRAME: Final = 0x2C


def count_frames(file: Image.Image, data: bytes, most: int) -> int | None:
    """Return the number of frames or pages, at most `most` + 1; None where it cannot be told.

    Pillow's own count of a GIF or TIFF has no bound, and a small file can hold millions.
    """
    if file.format == "GIF":
        found = _gif_frames(data)
    elif file.format == "TIFF":
        found = _tiff_pages(data)
    elif file.format in _DECLARED:
        return min(int(getattr(file, "n_frames", 1)), most + 1)
    else:
        return 1
    try:
        return sum(1 for _ in islice(found, most + 1)) or None
    except IndexError:  # the next page is beyond the end
        return None


def _gif_frames(data: bytes) -> Iterator[int]:
    """Yield the position of each frame that the file begins."""
    with suppress(IndexError):
        position = _after_palette(data, 10, 13)
        while data[position] != _GIF_END:
            if data[position] == _GIF_EXTENSION:
                position = _after_blocks(data, position + 2)
            elif data[position] == _GIF_FRAME:
                yield position
                position = _after_blocks(
                    data, _after_palette(data, position + 9, position + 10) + 1
                )
            else:  # Pillow passes over it, too
                position += 1


def _after_blocks(data: bytes, position: int) -> int:
    while data[position]:  # each block after its length, up to an empty one
        position += data[position] + 1
    return position + 1


def _after_palette(data: bytes, flags_at: int, position: int) -> int:
    flags = data[flags_at]
    return position + 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else position


def _tiff_pages(data: bytes) -> Iterator[int]:
    """Yield the position of each page's directory; raises IndexError where one is cut off."""
    order: Final = "big" if data[:2] == b"MM" else "little"
    is_big = 43 in (data[2], data[3])  # BigTIFF: 64-bit positions
    word, count_size, entry_size = (8, 8, 20) if is_big else (4, 2, 12)

    def number(position: int, size: int) -> int:
        if position + size > len(data):
            raise IndexError(position)
        return int.from_bytes(data[position : position + size], order)

    seen: set[int] = set()
    position = number(8 if is_big else 4, word)
    while position and position not in seen:  # a chain that bites its tail has ended
        seen.add(position)
        entries = number(position, count_size)
        yield position
        position = number(position + count_size + entries * entry_size, word)
