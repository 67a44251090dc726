"""Images to be reviewed as tasks of Label Studio or CVAT, with the labels that they have."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.exports.cvat import document_head, image_element
from pipeline.exports.label_studio import label_config, local_file, prediction
from pipeline.exports.records import ExportSegment, name_below, segment_of
from pipeline.whole_file import whole_file

LABEL_CONFIG: Final = "label_config.xml"


@dataclass(frozen=True)
class ReviewTask:
    """One image to be reviewed: a row of the dataset, and why it was chosen."""

    row: Mapping[str, Any]
    chosen: str  # worth, or random

    @property
    def segments(self) -> tuple[ExportSegment, ...]:
        """Its labels."""
        return tuple(segment_of(one, one["class_index"]) for one in self.row["segments"])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.row["height"], self.row["width"]


@dataclass(frozen=True)
class ReviewedVersion:
    """What the tasks are made of."""

    version: int
    source: str  # as URIs of images begin with it
    names: Sequence[str]


def write_label_studio(path: Path, tasks: Iterable[ReviewTask], of: ReviewedVersion) -> None:
    """Write tasks to import, and beside them the labelling interface.

    Local images are given below the source: set LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to it.
    """
    with whole_file(path) as file:
        file.write("[")
        for number, task in enumerate(tasks):
            file.write((",\n" if number else "\n") + json.dumps(_label_studio_task(task, of)))
        file.write("\n]\n")
    with whole_file(path.with_name(LABEL_CONFIG)) as file:
        file.write(label_config(of.names).decode())


def _label_studio_task(task: ReviewTask, of: ReviewedVersion) -> dict[str, Any]:
    row = task.row
    name = name_below(of.source, row["uri"])
    is_local = row["uri"].startswith("file://") and name != row["uri"]
    return {
        "data": {
            "image": local_file(name) if is_local else row["uri"],
            "image_id": row["image_id"],
            "bytes_sha256": row["bytes_sha256"],
            "segmill_version": of.version,
            "chosen": task.chosen,
        },
        "predictions": [
            prediction(row["image_id"], task.size, task.segments, of.names, of.version)
        ],
    }


def write_cvat(path: Path, tasks: Iterable[ReviewTask], of: ReviewedVersion) -> None:
    """Write annotations to upload to a task of these images, by their names below the source."""
    lines = [
        image_element(
            number, name_below(of.source, task.row["uri"]), task.size, task.segments, of.names
        )
        for number, task in enumerate(tasks)
    ]
    with whole_file(path) as file:
        file.write(document_head(f"segmill {of.version}", len(lines), of.names))
        file.writelines(f"{line}\n" for line in lines)
        file.write("</annotations>\n")
