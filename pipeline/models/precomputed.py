"""Proposals made elsewhere: label maps or stacks of masks in files, one per image (spec 1.1).

Files are matched to images by stem, as truths are. A label map is a PNG or a `.npy` array (H, W) of
integers: every number from 0 on is a mask, negative ones are none. A stack is a `.npy` array
(Q, H, W) of booleans, or an `.npz` file of that one array. Dimension key: Q proposals, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.models import Proposals, ProposerCard, ProposerEntry
from pipeline.models.partition import DIVISOR, grid_logits
from pipeline.models.weights import sha256_of
from pipeline.resize import Size, resize_nearest
from pipeline.truth import ImageFiles, read_indices
from schemas.errors import ModelError

_SUFFIXES: Final = frozenset({".png", ".npy", ".npz"})
_MAX_MASKS: Final = 500  # of one image; they are held in memory as floats at the image's size


@dataclass(frozen=True)
class Precomputed:
    """The mask files below a directory."""

    directory: str
    files: ImageFiles

    @classmethod
    def find(cls, directory: str) -> "Precomputed":
        """Collect the files of masks; raises ModelError when there are none."""
        files = ImageFiles.below(directory, _SUFFIXES)
        if not files:
            raise ModelError(f"there are no mask files (.png, .npy, .npz) in {directory!r}")
        return cls(directory, files)

    def look_up(self, uri: str, size: Size, image_size: Size) -> Proposals:
        """Return the proposals of an image of original `size`, resized to `image_size`.

        Raises ValueError when the image has no file, or one that does not fit.
        """
        path = self.files.of(uri)
        if path is None:
            raise ValueError(f"{uri} has no mask file in {self.directory}")
        return Proposals(grid_logits(masks_at(image_size, read_masks(path), size, str(path))))


def _load(path: Path) -> list[NDArray[Any]]:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return [loaded]
    with loaded:  # reads an array when it is asked for
        return [loaded[name] for name in loaded.files]


def read_masks(path: Path) -> NDArray[Any]:
    """Return a label map (H, W) of integers or a stack (Q, H, W) of booleans.

    Raises ValueError for a file that cannot be read or holds something else.
    """
    if path.suffix == ".png":
        return read_indices(path)
    try:
        arrays = _load(path)
    except Exception as error:  # any type: the file may be truncated anywhere
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {len(arrays)} arrays, not one")
    loaded: NDArray[Any] = arrays[0]
    is_label_map = loaded.ndim == 2 and np.issubdtype(loaded.dtype, np.integer)
    if not is_label_map and not (loaded.ndim == 3 and loaded.dtype == np.bool_):
        raise ValueError(
            f"{path} is {loaded.dtype} of shape {loaded.shape}, "
            "neither integers (H, W) nor booleans (Q, H, W)"
        )
    return loaded


def masks_at(image_size: Size, masks: NDArray[Any], size: Size, source: str) -> NDArray[np.bool_]:
    """Return what `read_masks` returned as masks (Q, H, W) of the resized image.

    Masks are of the original `size` or already of `image_size`; of the former the nearest pixel is
    taken. Raises ValueError that names the sizes otherwise, and for more masks than can be held.
    """
    found = masks.shape[-2:]
    if found == size:
        masks = resize_nearest(masks, image_size)
    elif found != image_size:
        raise ValueError(
            f"masks of {source} are {_words(found)}, "
            f"the image is {_words(size)} and resized {_words(image_size)} (height x width)"
        )
    regions = np.unique(masks[masks >= 0]) if masks.ndim == 2 else masks
    if len(regions) > _MAX_MASKS:
        raise ValueError(f"{source} holds {len(regions)} masks, at most {_MAX_MASKS} are possible")
    return masks == regions[:, None, None] if masks.ndim == 2 else masks


def describe(weights: str | None) -> ProposerCard:
    """Return the card; its hash covers every file. Raises ModelError when there are no files."""
    if weights is None:
        raise ModelError("proposer precomputed needs proposer_weights, a directory of mask files")
    Precomputed.find(weights)
    return ProposerCard(
        short_edge=640,
        long_edge=2560,
        divisor=DIVISOR,
        embedding_dim=None,
        weights_sha256=sha256_of(Path(weights)),
        licence="that of the mask files",
    )


PRECOMPUTED: Final = ProposerEntry(
    summary="masks made elsewhere, one file per image (.png, .npy, .npz)",
    describe=describe,
    load=lambda weights, device: Precomputed.find(weights or ""),
)


def _words(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
