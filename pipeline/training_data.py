"""Images and label maps of a version for PyTorch, read from the dataset as it is.

    images = VersionImages(TrainingDataConfig(dataset="labels", split="train", val_fraction=0.1))
    loader = DataLoader(images, batch_size=8, sampler=GroupSampler(images, seed=0), num_workers=4)

Ray Data's reader over the same samples is `pipeline.training_runtime.read_version`.

Dimension key: H W pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from pipeline.dataset import read_manifest
from pipeline.exports.pictures import LeftOut, Pictures
from pipeline.exports.records import label_map_of, split_of
from pipeline.exports.selection import Selection
from pipeline.files import read_with
from pipeline.metrics import truth_ignore
from pipeline.packed import is_cell
from pipeline.storage import hide_secrets
from schemas.annotation import LABELLED
from schemas.errors import TrainingError
from schemas.export_config import TrainingDataConfig
from schemas.manifest import Manifest

_COLUMNS: Final = (
    "image_id", "uri", "bytes_sha256", "height", "width", "exif_orientation", "status", "segments",
)  # fmt: skip
_GROUPS_KEPT: Final = 2  # of rows, per process: one being read, and the one that comes next
_KEPT_BYTES: Final = 512 * 2**20  # of images in Parquet files, per process

Sample = dict[str, Any]


@dataclass(frozen=True)
class RowGroup:
    """The wanted rows of one row group of a file, in the order in which their images are read."""

    path: str
    group: int
    rows: NDArray[np.int32]


@dataclass(frozen=True)
class SampleReader:
    """Makes samples of dataset rows; it travels to the processes that do."""

    selection: Selection
    pictures: Pictures

    @classmethod
    def of(
        cls, config: TrainingDataConfig, manifest: Manifest, kept_bytes: int = 0
    ) -> "SampleReader":
        """Read what the settings name; raises SettingsError as an export would."""
        pictures = Pictures.of(config, manifest, kept_bytes)
        return cls(Selection.read(manifest.vocabulary, config), pictures)

    @property
    def ignore(self) -> int:
        """What pixels of no class hold: 255, or 65535 where 255 is a class."""
        return truth_ignore(len(self.selection.names))

    def sample(self, row: dict[str, Any]) -> Sample | LeftOut:
        """Return image (H, W, 3) uint8, labels (H, W) int32 and image_id of a row."""
        (data,) = self.pictures.fetch([row])
        image = self.pictures.decode(data) if isinstance(data, bytes) else data
        if isinstance(image, LeftOut):
            return image
        size = (row["height"], row["width"])
        kept, _ = self.selection.apply(row["segments"], size)
        labels_HW = label_map_of(kept, size, self.ignore)
        return {"image": np.asarray(image), "labels": labels_HW, "image_id": row["image_id"]}


def wanted_groups(config: TrainingDataConfig, manifest: Manifest) -> Iterator[RowGroup]:
    """Yield the labelled rows of the split, by row group; reads ids and uris alone."""
    for file in manifest.images:
        for number, table in enumerate(_ids(config.dataset, file.path)):
            rows = [
                row
                for row, (image_id, status) in enumerate(
                    zip(table["image_id"].to_pylist(), table["status"].to_pylist(), strict=True)
                )
                if status == LABELLED
                and config.split
                in (None, split_of(image_id, config.val_fraction, config.split_seed))
            ]
            if rows:
                uris = table["uri"].to_pylist()
                # Neighbours in a Parquet file together: a whole row group is read for each.
                rows.sort(key=lambda row: uris[row] if is_cell(uris[row]) else "")
                yield RowGroup(file.path, number, np.array(rows, np.int32))


def _ids(dataset: str, path: str) -> list[pa.Table]:
    def read(stream: Any) -> list[pa.Table]:
        file = pq.ParquetFile(stream)
        columns = ["image_id", "status", "uri"]
        return [file.read_row_group(group, columns) for group in range(file.num_row_groups)]

    return read_with(dataset, path, read)


@lru_cache(_GROUPS_KEPT)
def read_group(dataset: str, path: str, group: int) -> pa.Table:
    """Return one row group with what samples are made of."""
    return read_with(
        dataset,
        path,
        lambda stream: pq.ParquetFile(stream).read_row_group(group, list(_COLUMNS)),
    )


class VersionImages(Dataset[Sample]):
    """The images of a version by number.

    A sample holds `image` (3, H, W) uint8, `labels` (H, W) int64 and `image_id`; pixels of no class
    are `ignore`. `transform` is applied to each sample. Memory: four bytes per image, and two row
    groups per process; where images are in Parquet files, 512 MiB of those more. Any order works,
    but reads a row group per image where there are many; `GroupSampler` does not. Raises
    TrainingError for an image that changed since it was labelled or cannot be had any more.
    """

    def __init__(
        self, config: TrainingDataConfig, transform: Callable[[Sample], Any] | None = None
    ) -> None:
        manifest = read_manifest(config.dataset, config.version)
        self.version = manifest.version
        self.reader = SampleReader.of(config, manifest, _KEPT_BYTES)
        self.groups = tuple(wanted_groups(config, manifest))
        self.starts = np.cumsum([0, *(len(group.rows) for group in self.groups)])
        self._dataset = config.dataset
        self._transform = transform

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position here."""
        return self.reader.selection.names

    @property
    def ignore(self) -> int:
        """The label of pixels of no class."""
        return self.reader.ignore

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        group = self.groups[place]
        table = read_group(self._dataset, group.path, group.group)
        position = int(group.rows[index - self.starts[place]])
        (row,) = table.slice(position, 1).to_pylist()
        found = self.reader.sample(row)
        if isinstance(found, LeftOut):
            raise TrainingError(f"{hide_secrets(row['uri'])}: {found.message}")
        sample: Sample = {
            **found,
            "image": torch.from_numpy(found["image"].copy()).permute(2, 0, 1),
            "labels": torch.from_numpy(found["labels"]).long(),
        }
        return sample if self._transform is None else self._transform(sample)


class GroupSampler(Sampler[int]):
    """A shuffled order that stays within a row group until it is used up.

    Every image once; another order for each epoch, which `set_epoch` names.
    """

    def __init__(self, images: VersionImages, seed: int) -> None:
        self._images = images
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        starts = self._images.starts
        for place in rng.permutation(len(self._images.groups)):
            yield from (rng.permutation(starts[place + 1] - starts[place]) + starts[place]).tolist()
