"""From bytes to an upright RGB image, or to one verdict."""

import csv
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from pipeline.decode import BadImage, DecodeSettings, decode_image, decode_resized

MAX_PIXELS = 100_000_000
MAX_FRAMES = 1000
ORIENTATION, XMP = 0x0112, 700
RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(data):
    """Return the pixels (H, W, 3) of a file."""
    return np.asarray(decode_image(data, MAX_PIXELS, MAX_FRAMES).image)


def corners():
    """Return a picture 2 high and 3 wide: red top left, green top right, blue bottom left."""
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), RED)
    image.putpixel((2, 0), GREEN)
    image.putpixel((0, 1), BLUE)
    return image


# What a camera stores for each orientation, so that it shows `corners()` when brought upright.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    "format, options",
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
    ids=["png", "tiff", "compressed tiff", "webp"],
)
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_exif_orientation_is_brought_upright(orientation, format, options):
    turn = STORED_AS[orientation]
    stored = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode_image(encode(stored, format, exif=exif, **options), MAX_PIXELS, MAX_FRAMES)
    assert decoded.origin.exif_orientation == orientation
    np.testing.assert_array_equal(decoded.image, corners())


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_the_size_of_every_orientation_is_that_of_the_upright_image(orientation, format):
    turn = STORED_AS[orientation]
    upright = corners().resize((300, 100))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(upright if turn is None else upright.transpose(turn), format, exif=exif)
    origin = decode_image(data, MAX_PIXELS, MAX_FRAMES).origin
    assert (origin.height, origin.width) == (100, 300)
    picture = resized(data, False)
    assert picture.origin == origin
    assert picture.pixels_HW3.shape == (64, 192, 3)


def test_an_orientation_that_a_tiff_tells_as_xmp_turns_the_size_too():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(corners().transpose(STORED_AS[6]), "TIFF", tiffinfo={XMP: xmp})
    decoded = decode_image(data, MAX_PIXELS, MAX_FRAMES)
    np.testing.assert_array_equal(decoded.image, corners())
    assert (decoded.origin.height, decoded.origin.width) == (2, 3)


def test_a_jpeg_of_a_phone_held_upright_is_portrait():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    landscape = Image.new("RGB", (32, 16), BLUE)
    landscape.paste(RED, (0, 0, 16, 16))
    pixels = decode(encode(landscape, "JPEG", exif=exif, quality=95))
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 0] > 200 > 50 > pixels[28, 8, 0]


@pytest.mark.parametrize("orientation", [0, 9, 65535], ids=["zero", "nine", "large"])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode_image(encode(corners(), "PNG", exif=exif), MAX_PIXELS, MAX_FRAMES)
    assert decoded.origin.exif_orientation == 1
    np.testing.assert_array_equal(decoded.image, corners())


def test_a_broken_exif_block_does_not_spoil_the_pixels():
    data = encode(corners(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(data), corners())


@pytest.mark.parametrize(
    "format, options, tolerance",
    [
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("GIF", {}, 0),
        ("TGA", {}, 0),
        ("QOI", {}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 4),
        ("JPEG2000", {"irreversible": False}, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_common_formats_give_their_pixels(format, options, tolerance):
    pixels = decode(encode(corners(), format, **options)).astype(int)
    np.testing.assert_allclose(pixels, np.asarray(corners()), atol=tolerance)


def test_one_pixel_is_an_image():
    assert decode(encode(Image.new("RGB", (1, 1), GREEN), "PNG")).tolist() == [[list(GREEN)]]


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 0), (77, 77, 77)),
        ("RGBA", (*GREEN, 0), GREEN),
    ],
    ids=["grey", "black and white", "transparent grey", "transparent colour"],
)
def test_other_modes_become_rgb_and_transparency_is_dropped(mode, colour, expected):
    pixels = decode(encode(Image.new(mode, (3, 2), colour), "PNG"))
    assert pixels.shape == (2, 3, 3)
    assert (pixels == expected).all()


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"], ids=["one index", "alpha per index"])
def test_a_palette_with_transparency_gives_its_colours(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    pixels = decode(encode(image, "PNG", transparency=transparency))
    assert pixels.tolist() == [[list(RED), list(GREEN)]]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format):
    # No cyan, full magenta and yellow: red.
    pixels = decode(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format))
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(RED, (16, 16, 3)), atol=4)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 256, 32768, 65535], [0, 1, 128, 255]),
        ([0, 1000, 4000, 40000], [0, 4, 16, 156]),
        ([0, 1, 128, 255], [0, 0, 0, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
    ids=["full range", "not full", "very dark", "black"],
)
def test_sixteen_bits_are_scaled_not_clipped(format, values, expected):
    image = Image.fromarray(np.array([values], dtype=np.uint16))
    assert decode(encode(image, format))[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25, 0.5], [0, 64, 128]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([-5.0, 0.0, 1.0], [0, 0, 255]),
        ([np.nan, np.inf, 1.0], [0, 0, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
    ids=["unit range", "half of it", "beyond it", "negative", "not finite", "nothing finite"],
)
def test_floats_are_scaled_not_clipped(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert decode(encode(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format):
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = decode(encode(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert pixels.shape == (3, 4, 3)
    assert (pixels == RED).all()


def test_a_format_that_runs_a_program_is_no_image(tmp_path, monkeypatch):
    # Pillow hands EPS to Ghostscript, which it looks up by name.
    marker = tmp_path / "ran"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    data = encode(corners(), "EPS")
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.code == "not_an_image"
    assert not marker.exists()


def test_large_grey_images_are_scaled_as_a_whole():
    # Over more than one strip: the brightest value of all decides the scale.
    values = np.zeros((1100, 1000), dtype=np.float32)
    values[0, 0], values[-1, -1] = 500.0, 1000.0
    pixels = decode(encode(Image.fromarray(values), "TIFF"))
    assert (pixels[0, 0, 0], pixels[-1, -1, 0], pixels.max()) == (128, 255, 255)


def smooth_jpeg(height, width, **options):
    """Return a JPEG photo-like in that its detail is larger than some pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    scene = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return encode(scene, "JPEG", quality=92, **options)


def resized(data, jpeg_draft, edges=(64, 256)):
    return decode_resized(data, DecodeSettings(*edges, MAX_PIXELS, MAX_FRAMES, 9, 999, jpeg_draft))


@pytest.mark.parametrize("orientation", [1, 6], ids=["upright", "turned"])
def test_a_draft_of_a_large_jpeg_is_near_the_exact_image(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = smooth_jpeg(800, 1200, exif=exif)
    exact, draft = resized(data, False), resized(data, True)
    assert draft.origin == exact.origin
    assert {draft.origin.height, draft.origin.width} == {800, 1200}
    assert draft.pixels_HW3.shape == exact.pixels_HW3.shape
    difference = np.abs(draft.pixels_HW3.astype(int) - exact.pixels_HW3)
    assert 0 < difference.mean() < 1.5
    assert difference.max() < 30


@pytest.mark.parametrize(
    "data",
    [smooth_jpeg(200, 300), encode(corners().resize((900, 600)), "PNG")],
    ids=["less than four times as large", "no jpeg"],
)
def test_other_images_are_the_same_with_drafts_allowed(data):
    exact, draft = resized(data, False), resized(data, True)
    np.testing.assert_array_equal(draft.pixels_HW3, exact.pixels_HW3)


def photo():
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def photo_bytes(format):
    return encode(photo(), format)


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "empty_file"),
        (b"this is text, not pixels\n", "not_an_image"),
        (b"\x00" * 1000, "not_an_image"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (photo_bytes("JPEG")[:1000], "corrupt"),
        (photo_bytes("PNG")[:1000], "corrupt"),
        (photo_bytes("TIFF")[:1000], "corrupt"),
        (photo_bytes("JPEG")[:2], "not_an_image"),
    ],
    ids=[
        "no bytes",
        "text",
        "zeros",
        "html",
        "truncated jpeg",
        "truncated png",
        "truncated tiff",
        "two bytes of a jpeg",
    ],
)
def test_a_file_that_is_no_image_gets_a_verdict(data, code):
    with pytest.raises(BadImage) as caught:
        decode_image(data, MAX_PIXELS, MAX_FRAMES)
    assert caught.value.code == code
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(data):
    """Return a PNG whose compressed pixels are wrong from the middle on."""
    middle = data.index(b"IDAT") + 4 + 2000
    return data[:middle] + bytes(64) + data[middle + 64 :]


def with_bad_text(data):
    """Return a PNG with a text behind its pixels whose compression does not exist."""
    text = b"zTXt" + b"name\0\1text"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    end = data.index(b"IEND") - 4
    return data[:end] + chunk + data[end:]


EMPTY_EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"


@pytest.mark.parametrize("options", [{}, {"exif": EMPTY_EXIF}], ids=["no exif", "exif"])
def test_a_png_with_damaged_pixels_is_corrupt(options):
    data = encode(photo(), "PNG", **options)
    np.testing.assert_array_equal(decode(data), photo())
    for bad in (damaged(data), with_bad_text(damaged(data))):
        with pytest.raises(BadImage, match="data stream") as caught:
            decode(bad)
        assert caught.value.code == "corrupt"


@pytest.mark.parametrize("options", [{}, {"exif": EMPTY_EXIF}], ids=["no exif", "exif"])
def test_damage_behind_the_pixels_of_a_png_does_not_spoil_them(options):
    data = with_bad_text(encode(photo(), "PNG", **options))
    cut = data[: data.index(b"zTXt") + 6]
    for bad in (data, cut):
        np.testing.assert_array_equal(decode(bad), photo())


def long_texts():
    """Return PNG options by name, each with metadata of over a mebibyte."""
    compressed, international = PngInfo(), PngInfo()
    compressed.add_text("workflow", "x" * 1_200_000, zip=True)
    international.add_itxt("workflow", "x" * 1_200_000, zip=True)
    return {
        "icc": {"icc_profile": bytes(2_000_000)},
        "ztxt": {"pnginfo": compressed},
        "itxt": {"pnginfo": international},
    }


@pytest.mark.parametrize("kind", long_texts())
def test_long_metadata_of_a_png_does_not_spoil_the_pixels(kind):
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    np.testing.assert_array_equal(decode(encode(corners(), "PNG", **long_texts()[kind])), corners())
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK


def test_metadata_of_a_png_has_a_limit_all_the_same():
    data = encode(corners(), "PNG", icc_profile=bytes(PngImagePlugin.MAX_TEXT_MEMORY + 1))
    with pytest.raises(BadImage, match="too large"):
        decode(data)


@pytest.mark.parametrize("limit", [5, 2, 1], ids=["one over", "three times over", "six times"])
def test_an_image_of_too_many_pixels_is_not_decoded(limit):
    data = encode(corners(), "PNG")
    with pytest.raises(BadImage) as caught:
        decode_image(data, limit, MAX_FRAMES)
    assert caught.value.code == "too_many_pixels"
    assert decode_image(data, 6, MAX_FRAMES).image.size == (3, 2)


def test_the_limit_of_one_call_does_not_outlive_it():
    data = encode(corners(), "PNG")
    with pytest.raises(BadImage):
        decode_image(data, 1, MAX_FRAMES)
    assert Image.open(io.BytesIO(data)).size == (3, 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF"])
def test_damaged_bytes_give_an_image_or_a_verdict(format, seed):
    generator = np.random.default_rng(seed)
    damaged = np.frombuffer(photo_bytes(format), dtype=np.uint8).copy()
    damaged[generator.integers(0, len(damaged), 20)] = generator.integers(0, 256, 20)
    try:
        decoded = decode_image(damaged.tobytes(), 10_000_000, MAX_FRAMES)
    except BadImage:
        return
    assert decoded.image.mode == "RGB"


# Pillow fails on these when later frames are counted or warnings are errors; the first frame, which
# is all that is read here, is whole.
_GOOD_FIRST_FRAME = {"139_bad_TypeError.bin", "157_bad_SyntaxError.png", "170_bad_IndexError.gif"}


@pytest.mark.shared
def test_awkward_and_hostile_files_decode_or_get_a_verdict(shared):
    with (shared / "odd" / "manifest.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    unexpected = {}
    for record in records:
        name, data = record["file"], (shared / "odd" / record["file"]).read_bytes()
        try:
            decoded = decode_image(data, MAX_PIXELS, MAX_FRAMES)
        except BadImage as verdict:
            outcome = f"{verdict.code}: {verdict}"
        else:
            outcome = "ok" if decoded.image.mode == "RGB" else decoded.image.mode
            height, width = np.asarray(decoded.image).shape[:2]
            assert height > 0 < width and 1 <= decoded.origin.exif_orientation <= 8
        is_good = record["pillow13_outcome"] == "ok" or name in _GOOD_FIRST_FRAME
        if (outcome == "ok") != is_good:
            unexpected[name] = outcome
    assert unexpected == {}
    assert len(records) == 172


@pytest.mark.shared
@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_photos_of_every_orientation_show_the_same_scene(shared, shape):
    with (shared / "odd" / "manifest.csv").open(newline="") as file:
        records = [row for row in csv.DictReader(file) if f"/{shape}_" in row["source"]]
    decoded = [
        decode_image((shared / "odd" / row["file"]).read_bytes(), MAX_PIXELS, MAX_FRAMES)
        for row in records
    ]
    assert [image.origin.exif_orientation for image in decoded] == [1, 1, 2, 3, 4, 5, 6, 7, 8]
    small = [np.asarray(image.image.resize((16, 16))).astype(float) for image in decoded]
    assert len({image.image.size for image in decoded}) == 1
    # The photos carry their number, hence a tolerance.
    assert max(np.abs(image - small[0]).mean() for image in small) < 4
