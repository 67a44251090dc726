"""The settings of `segmill diff`."""

from pydantic import Field

from schemas.config import Config, LocalPath


class DiffConfig(Config):
    """Compare two versions of labels: pixels that moved, classes, images; a gate for CI."""

    before: str = Field(
        description="DATASET@VERSION, the newest version where none is given (labels, labels@3)"
    )
    after: str = Field(description="DATASET@VERSION to compare with it")
    max_moved: float | None = Field(
        None, ge=0, le=1, description="fail when a larger share of the pixels has another label"
    )
    min_class_iou: float | None = Field(
        None, ge=0, le=1, description="fail when a class before and after overlap less (IoU)"
    )
    min_class_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="classes with a smaller share of the pixels, before and after, may do so",
    )
    max_lost: float | None = Field(
        None,
        ge=0,
        le=1,
        description="fail when a larger share of the labelled images is gone or quarantined",
    )
    output: LocalPath | None = Field(None, description="JSON file to write with every figure")
    page: LocalPath | None = Field(None, description="HTML page to write, of the largest changes")
    max_images: int = Field(24, ge=1, description="images on the page")
    memory_mb: int = Field(
        1024, ge=64, description="memory for joining the versions, in MiB; the rest spills"
    )
