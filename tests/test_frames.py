"""Frames are counted, up to a limit, without being decoded."""

import csv
import io
import struct

import pytest
from PIL import Image

from pipeline.decode import BadImage, decode_image
from pipeline.frames import count_frames


def animated(format, frames):
    pictures = [Image.new("RGB", (5, 4), (40 * index, 0, 9)) for index in range(frames)]
    buffer = io.BytesIO()
    if frames == 1:
        pictures[0].save(buffer, format)
    else:
        pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def count(data, most=100):
    with Image.open(io.BytesIO(data)) as file:
        return count_frames(file, data, most)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_every_animated_format_are_counted(format, frames):
    data = animated(format, frames)
    assert count(data) == frames
    assert decode_image(data, 100, 5).origin.frames == frames


@pytest.mark.parametrize("format", ["JPEG", "BMP", "JPEG2000", "PPM", "TGA"])
def test_a_still_has_one_frame(format):
    assert decode_image(animated(format, 1), 100, 1).origin.frames == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_file_of_more_frames_than_the_limit_is_refused(format):
    data = animated(format, 5)
    assert count(data, most=3) == 4  # not counted to the end
    with pytest.raises(BadImage) as caught:
        decode_image(data, 100, 4)
    assert caught.value.code == "too_many_frames"
    assert decode_image(data, 100, 5).image.size == (5, 4)


def test_frames_that_a_cut_gif_begins_are_counted():
    data = animated("GIF", 5)
    cut = data[: data.rindex(b"\x2c") + 12]
    assert count(cut) == 5
    assert decode_image(cut, 100, 5).origin.frames == 5


def test_where_the_chain_of_tiff_pages_breaks_their_number_is_unknown():
    data = bytearray(animated("TIFF", 1))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, 10**6)
    assert count(bytes(data)) is None
    assert decode_image(bytes(data), 100, 5).origin.frames is None


def test_a_gif_with_frames_beyond_number_is_read_no_further_than_the_limit():
    header, frame = (
        animated("GIF", 1)[:-1],
        b"\x2c" + struct.pack("<4HB", 0, 0, 5, 4, 0) + b"\x02\0",
    )
    assert count(header + frame * 10**6, most=50) == 51


def tiff_pages(*pages_next, big=False):
    """Return a TIFF of empty pages, each of which names the page at the given index as next."""
    size = 16 if big else 6
    start = 16 if big else 8
    places = [start + index * size for index in range(len(pages_next))]
    header = (
        b"II+\0\x08\0\0\0" + struct.pack("<Q", start)
        if big
        else b"II*\0" + struct.pack("<I", start)
    )
    pages = [
        struct.pack("<QQ" if big else "<HI", 0, 0 if nxt is None else places[nxt])
        for nxt in pages_next
    ]
    return header + b"".join(pages)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize(
    "pages_next, expected",
    [((None,), 1), ((1, 2, None), 3), ((1, 0), 2), ((0,), 1)],
    ids=["one", "three", "a circle", "itself"],
)
def test_a_chain_of_tiff_pages_ends(pages_next, expected, big):
    picture = Image.new("RGB", (1, 1))
    picture.format = "TIFF"
    assert count_frames(picture, tiff_pages(*pages_next, big=big), 100) == expected


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")  # Pillow's own, on damaged metadata
def test_real_files_have_as_many_frames_as_pillow_finds(shared):
    with (shared / "odd" / "manifest.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file) if row["pillow13_outcome"] == "ok"]
    counted = {}
    for name in names:
        data = (shared / "odd" / name).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pillow = getattr(image, "n_frames", 1) if image.format != "PSD" else 1
            counted[name] = count_frames(image, data, 10_000), pillow
    assert {name: pair for name, pair in counted.items() if pair[0] != pair[1]} == {}
    assert sum(pair[0] > 1 for pair in counted.values()) > 15
