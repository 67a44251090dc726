"""Prepared data sets in detectron2's catalogue, where detectron2 is installed."""

from functools import partial
from pathlib import Path

from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from schemas.errors import DatasetError


def register_in_detectron2(root: str | Path) -> tuple[str, ...]:
    """Register every split of a data set as `segmill_NAME_SPLIT`; return these names.

    Files are listed when detectron2 asks for them. Raises DatasetError where detectron2 is not
    installed, and for a name that its catalogue has already.
    """
    try:
        from detectron2.data import DatasetCatalog, MetadataCatalog
    except ImportError:
        raise DatasetError("detectron2 is not installed; its INSTALL.md says how") from None
    dataset = read_dataset(root)
    names = {split: f"segmill_{dataset.name}_{split}" for split in dataset.splits}
    if taken := [name for name in names.values() if name in DatasetCatalog]:
        raise DatasetError(f"detectron2's catalogue has {taken[0]} already")
    for split, name in names.items():
        facts = dataset.splits[split]
        DatasetCatalog.register(name, partial(_records, root, split))
        MetadataCatalog.get(name).set(
            stuff_classes=list(read_split_vocabulary(root, split).names),
            ignore_label=dataset.ignore,
            image_root=str(Path(root) / facts.images),
            sem_seg_root=str(Path(root) / facts.masks),
            evaluator_type="sem_seg",
        )
    return tuple(names.values())


def _records(root: str | Path, split: str) -> list[dict[str, str]]:
    return [
        {"file_name": str(image), "sem_seg_file_name": str(mask)}
        for image, mask in read_split(root, split)
    ]
