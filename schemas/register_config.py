"""The settings of `segmill register`."""

from pydantic import Field

from schemas.config import Config, DatasetUrl, DatasetVersion


class RegisterConfig(Config):
    """Show a version of a dataset as a snapshot of an Iceberg table; no row is copied."""

    dataset: DatasetUrl
    table: str = Field(
        pattern=r"^[^.]+(\.[^.]+)+$",
        description="NAMESPACE.TABLE of the catalog; made where it is not there",
    )
    catalog: str = Field(
        "default",
        description="catalog as pyiceberg knows it, from .pyiceberg.yaml or PYICEBERG_CATALOG__...",
    )
    version: DatasetVersion = None
