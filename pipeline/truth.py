"""Ground truth: PNG label maps of class indices, matched to images by their paths.

Dimension key: H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import SettingsError

_INDEX_MODES = frozenset({"L", "P", "I", "I;16"})


@dataclass(frozen=True)
class Truths:
    """The label maps below a directory, by file stem."""

    by_stem: dict[str, list[Path]]

    @classmethod
    def find(cls, directory: str) -> "Truths":
        """Collect the PNG files of a directory; raises SettingsError when there are none."""
        by_stem: dict[str, list[Path]] = {}
        for path in sorted(Path(directory).rglob("*.png")):
            by_stem.setdefault(path.stem, []).append(path)
        if not by_stem:
            raise SettingsError(f"there are no PNG label maps in {directory}")
        return cls(by_stem)

    def of(self, uri: str) -> Path | None:
        """Return the truth of an image, or None: of equal stems, the path that agrees furthest."""
        image = PurePosixPath(uri)
        candidates = self.by_stem.get(image.stem, [])
        return max(candidates, key=lambda path: _agreement(path, image), default=None)


def _agreement(truth: Path, image: PurePosixPath) -> int:
    """Count the parent folders, from the innermost outwards, that bear the same name."""
    agreed = 0
    for mine, theirs in zip(truth.parts[-2::-1], image.parts[-2::-1], strict=False):
        if mine != theirs:
            break
        agreed += 1
    return agreed


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Read a PNG of class indices (palette or grey), (H, W).

    Raises SettingsError for a file that cannot be decoded and for a colour image.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            label_map_HW = np.asarray(file)
    except Exception as error:  # decoders raise almost any type on corrupt files
        raise SettingsError(f"cannot read truth {path}: {type(error).__name__}: {error}") from None
    if mode not in _INDEX_MODES:
        raise SettingsError(f"truth {path} is a {mode} image, not one of class indices")
    return label_map_HW.astype(np.int32)
