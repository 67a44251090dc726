"""The registry of data sets that can be prepared: a plain dict of lazily imported entries.

Adding a data set is one new file that defines an entry, and one line here.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pipeline.datasets.plan import DatasetEntry
from schemas.errors import DatasetError


def _lazy(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(module), name)


DATASETS: Mapping[str, Callable[[], DatasetEntry]] = {
    "coco-stuff": _lazy("pipeline.datasets.coco_stuff", "COCO_STUFF"),
    "voc-2012": _lazy("pipeline.datasets.voc", "VOC_2012"),
    "pascal-context-59": _lazy("pipeline.datasets.pascal_context", "PASCAL_CONTEXT_59"),
    "pascal-context-459": _lazy("pipeline.datasets.pascal_context", "PASCAL_CONTEXT_459"),
    "ade20k-150": _lazy("pipeline.datasets.ade20k", "ADE20K_150"),
    "ade20k-847": _lazy("pipeline.datasets.ade20k_full", "ADE20K_847"),
    "cityscapes": _lazy("pipeline.datasets.cityscapes", "CITYSCAPES"),
    "folder": _lazy("pipeline.datasets.folder", "FOLDER"),
    "huggingface": _lazy("pipeline.datasets.hugging_face", "HUGGING_FACE"),
}


def find_dataset(name: str) -> DatasetEntry:
    """Return the registry entry; raises DatasetError that lists what there is."""
    if name not in DATASETS:
        raise DatasetError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]()
