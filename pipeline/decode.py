"""From bytes to an RGB image, within limits; a file that is no image is a BadImage, not a crash.

Dimension key: H height, W width.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pipeline.frames import count_frames
from pipeline.resize import Size, resize_image, resized_size

# What Pillow reads beyond these is rare in a corpus, hardly tested, or runs a program (EPS).
# TGA comes last: it has no signature, so it takes what looks like nothing else. MPO opens as JPEG.
FORMATS: Final = (
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "BMP", "PPM", "QOI", "PSD",
    "DDS", "ICO", "TGA",
)  # fmt: skip

_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation -> what brings the image upright.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED: Final = frozenset({5, 6, 7, 8})  # height and width change places
# Draft JPEGs stay at least this many times larger than the result, so that the final resize still
# averages pixels (tests/bench/decoder.py has what is lost).
_DRAFT_MARGIN: Final = 2
_CHUNK_PIXELS: Final = 2**20


class BadImage(Exception):  # a verdict on a file, caught at the per-image boundary
    """One file cannot be annotated: `code` is a word to group by, the message says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class DecodeSettings:
    """The size to decode to, and what decoding one file may cost."""

    short_edge: int
    long_edge: int
    max_pixels: int
    max_frames: int
    max_seconds: float  # of processor time
    max_mb: int  # of memory beyond what the decoder needs to start
    jpeg_draft: bool


@dataclass(frozen=True)
class Origin:
    """What a file said of its image."""

    height: int  # of the upright original
    width: int
    exif_orientation: int  # 1 to 8
    frames: int | None  # or pages; None: the file is damaged behind the first one


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image, and what its file said of it."""

    image: Image.Image
    origin: Origin


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image at the size that the proposer takes, and what its file said of it."""

    pixels_HW3: NDArray[np.uint8]
    origin: Origin


def decode_resized(data: bytes | bytearray, settings: DecodeSettings) -> Picture:
    """Decode an image file and resize it; raises BadImage as `decode_image` does."""
    edges = settings.short_edge, settings.long_edge
    decoded = decode_image(
        data, settings.max_pixels, settings.max_frames, edges if settings.jpeg_draft else None
    )
    original = decoded.origin.height, decoded.origin.width
    return Picture(resize_image(decoded.image, resized_size(original, *edges)), decoded.origin)


def decode_image(
    data: bytes | bytearray,
    max_pixels: int,
    max_frames: int,
    draft_edges: tuple[int, int] | None = None,
) -> Decoded:
    """Decode the first frame of an image file to upright 8-bit RGB.

    Transparency is dropped, not blended (as detectron2 does); 16-bit and float images are scaled
    to 8 bits. With `draft_edges` (short, long) a JPEG much larger than that is decoded at 1/2, 1/4
    or 1/8. Raises BadImage for anything that cannot be decoded or is over a limit.
    """
    if not data:
        raise BadImage("empty_file", "the file has no bytes")
    try:
        with warnings.catch_warnings(), _pillow_limits(max_pixels):
            warnings.simplefilter("ignore")
            return _decode(bytes(data), max_pixels, max_frames, draft_edges)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not_an_image", "no decoder recognises the file") from None
    except MemoryError:
        raise BadImage("out_of_memory", "decoding ran out of memory") from None
    except Exception as error:  # decoders raise almost any type on corrupt files
        detail = str(error).strip().splitlines()
        raise BadImage(
            "corrupt", f"{type(error).__name__}: {detail[0] if detail else ''}"
        ) from None


@contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    # Pillow refuses at twice this number while opening; `_decode` checks the exact limit.
    previous = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS = max_pixels
    # 1 MiB by default: profiles of printers and workflows of image generators are larger.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = previous


def _decode(
    data: bytes, max_pixels: int, max_frames: int, draft_edges: tuple[int, int] | None
) -> Decoded:
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        width, height = file.size
        if width * height > max_pixels:
            raise BadImage("too_many_pixels", f"{height} x {width} is over {max_pixels} pixels")
        if not width or not height:
            raise BadImage("no_pixels", f"the image is {height} x {width} pixels")
        frames = count_frames(file, data, max_frames)
        if frames is not None and frames > max_frames:
            raise BadImage("too_many_frames", f"the file has more than {max_frames} frames")
        if isinstance(file, PngImagePlugin.PngImageFile):
            _load_png(file)
        orientation = _orientation(file)
        size = (width, height) if orientation in _TURNED else (height, width)
        if draft_edges is not None:
            _draft(file, size, draft_edges)
        file.load()
        # Pillow brings a TIFF upright while it loads, and then takes the tag away. Its size may be
        # upright from the start.
        if file.format == "TIFF":
            size = file.height, file.width
        still_to_turn = _orientation(file)
        image = _to_rgb(file)
    del file  # its pixels, before the turned copy is made
    if still_to_turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[still_to_turn])
    return Decoded(image, Origin(*size, orientation, frames))


def _load_png(file: PngImagePlugin.PngImageFile) -> None:
    """Load the pixels; an error in them is raised, one in the metadata behind them is not."""
    # To ask for EXIF data loads a PNG, and Pillow tells of damaged pixels only the first time.
    read_end = file.load_end

    def load_end() -> None:
        with suppress(OSError, SyntaxError, ValueError):
            read_end()

    file.load_end = load_end  # type: ignore[method-assign]  # its error would hide the other
    try:
        file.load()
    finally:
        del file.load_end  # or the image would hold itself, and its memory stay


def _orientation(file: Image.Image) -> int:
    try:
        orientation = file.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the pixels bad
        return 1
    return int(orientation) if orientation in _UPRIGHT else 1


def _draft(file: Image.Image, size: Size, edges: tuple[int, int]) -> None:
    """Let a JPEG decode at a fraction of its size; a no-op for other formats."""
    height, width = resized_size(size, *edges)
    if size != (file.height, file.width):
        height, width = width, height
    file.draft(None, (_DRAFT_MARGIN * width, _DRAFT_MARGIN * height))


def _to_rgb(file: Image.Image) -> Image.Image:
    if file.mode.startswith("I") or file.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(file), file.mode)).convert("RGB")
    return file.convert("RGB")


def _to_8_bits(values_HW: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    # Pillow's own conversion of these modes clips at 255, which turns most images white.
    height, width = values_HW.shape
    # In strips: float64 of a whole image at the pixel limit would take gigabytes.
    rows = max(1, _CHUNK_PIXELS // width)
    strips = [slice(top, top + rows) for top in range(0, height, rows)]
    peak = max(float(_finite(values_HW[strip]).max(initial=0.0)) for strip in strips)
    if mode.startswith("I;16"):
        full_scale = 65535.0
    elif mode == "F":
        full_scale = 1.0 if peak <= 1.0 else peak
    else:  # 32-bit integers are mostly a container for fewer bits
        full_scale = 255.0 if peak <= 255 else 65535.0 if peak <= 65535 else peak
    scaled_HW = np.empty((height, width), np.uint8)
    for strip in strips:
        scaled_HW[strip] = np.clip(_finite(values_HW[strip]) / full_scale * 255.0 + 0.5, 0, 255)
    return scaled_HW


def _finite(values_HW: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.nan_to_num(values_HW.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
