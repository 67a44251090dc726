"""Settings of `segmill report`."""

from pathlib import Path

from pydantic import Field

from schemas.config import Config, DatasetUrl, DatasetVersion, LocalPath, LocalText


class ReportConfig(Config):
    """Write one self-contained HTML page with images, labels and, if given, the truth."""

    dataset: DatasetUrl
    output: LocalPath = Field(Path("report.html"), description="HTML file to write")
    truth: LocalText | None = Field(None, description="directory of PNG label maps to show beside")
    version: DatasetVersion = None
    max_images: int = Field(
        240,
        ge=1,
        description="images on the page: a quarter the worst, a quarter the least certain, the "
        "others spread evenly through the dataset",
    )
    max_page_mb: float = Field(
        20.0, gt=0, description="no further images once the page is of this size, in MB"
    )
