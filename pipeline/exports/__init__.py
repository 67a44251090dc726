"""The registry of export formats: a plain dict of lazily imported entries.

Adding a format is one new file that defines an `ExportFormat`, and one line here.
"""

from collections.abc import Callable, Mapping
from importlib import import_module

from pipeline.exports.formats import ExportFormat
from schemas.errors import SettingsError


def _lazy(module: str, name: str) -> Callable[[], ExportFormat]:
    def load() -> ExportFormat:
        entry: ExportFormat = getattr(import_module(f"pipeline.exports.{module}"), name)
        return entry

    return load


EXPORTS: Mapping[str, Callable[[], ExportFormat]] = {
    "coco-instances": _lazy("coco", "COCO_INSTANCES"),
    "coco-polygons": _lazy("coco", "COCO_POLYGONS"),
    "coco-panoptic": _lazy("coco_panoptic", "COCO_PANOPTIC"),
    "semantic-png": _lazy("semantic_png", "SEMANTIC_PNG"),
    "detectron2-sem-seg": _lazy("detectron2_sem_seg", "DETECTRON2_SEM_SEG"),
    "yolo-seg": _lazy("yolo_seg", "YOLO_SEG"),
    "hugging-face": _lazy("hugging_face", "HUGGING_FACE"),
    "webdataset": _lazy("webdataset", "WEBDATASET"),
    "label-studio": _lazy("label_studio", "LABEL_STUDIO"),
    "cvat": _lazy("cvat", "CVAT"),
    "fiftyone": _lazy("fiftyone", "FIFTYONE"),
}


def find_format(name: str) -> ExportFormat:
    """Return the registry entry; raises SettingsError that lists what there is."""
    if name not in EXPORTS:
        raise SettingsError(f"there is no export format {name!r}; there are {', '.join(EXPORTS)}")
    return EXPORTS[name]()
