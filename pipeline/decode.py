"""From bytes to an RGB image, within limits; a file that is no image is a BadImage, not a crash.

Dimension key: H height, W width.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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


class BadImage(Exception):  # a verdict on a file, caught at the per-image boundary
    """One file cannot be annotated: `code` is a word to group by, the message says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image and the EXIF orientation (1 to 8) that its file carried."""

    image: Image.Image
    exif_orientation: int


def decode_image(data: bytes, max_pixels: int) -> Decoded:
    """Decode the first frame of an image file to upright 8-bit RGB.

    Transparency is dropped, not blended (as detectron2 does); 16-bit and float images are scaled
    to 8 bits. Raises BadImage for anything that cannot be decoded or has over `max_pixels`.
    """
    if not data:
        raise BadImage("empty_file", "the file has no bytes")
    try:
        with warnings.catch_warnings(), _pillow_limit(max_pixels):
            warnings.simplefilter("ignore")
            return _decode(data, max_pixels)
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
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    # Pillow refuses at twice this number while opening; `_decode` checks the exact limit.
    previous = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = previous


def _decode(data: bytes, max_pixels: int) -> Decoded:
    with Image.open(BytesIO(data)) as file:
        width, height = file.size
        if width * height > max_pixels:
            raise BadImage("too_many_pixels", f"{height} x {width} is over {max_pixels} pixels")
        if not width or not height:
            raise BadImage("no_pixels", f"the image is {height} x {width} pixels")
        orientation = _orientation(file)
        file.load()
        # Pillow brings a TIFF upright while it loads, and then takes the tag away.
        still_to_turn = _orientation(file)
        image = _to_rgb(file)
    if still_to_turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[still_to_turn])
    return Decoded(image, orientation)


def _orientation(file: Image.Image) -> int:
    try:
        orientation = file.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the pixels bad
        return 1
    return int(orientation) if orientation in _UPRIGHT else 1


def _to_rgb(file: Image.Image) -> Image.Image:
    if file.mode.startswith("I") or file.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(file), file.mode)).convert("RGB")
    return file.convert("RGB")


def _to_8_bits(values_HW: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    # Pillow's own conversion of these modes clips at 255, which turns most images white.
    values = np.nan_to_num(values_HW.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max(initial=0.0))
    if mode.startswith("I;16"):
        full_scale = 65535.0
    elif mode == "F":
        full_scale = 1.0 if peak <= 1.0 else peak
    else:  # 32-bit integers are mostly a container for fewer bits
        full_scale = 255.0 if peak <= 255 else 65535.0 if peak <= 65535 else peak
    return np.clip(values / full_scale * 255.0 + 0.5, 0, 255).astype(np.uint8)
