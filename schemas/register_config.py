"""The settings of `segmill register`."""

from pydantic import Field

from schemas.config import Config


class RegisterConfig(Config):
    """Show a version of a dataset as a snapshot of an Iceberg table; no row is copied."""

    dataset: str = Field(description="dataset directory or URL")
    table: str = Field(
        pattern=r"^[^.]+(\.[^.]+)+$",
        description="NAMESPACE.TABLE of the catalog; made where it is not there",
    )
    catalog: str = Field(
        "default",
        description="catalog as pyiceberg knows it, from .pyiceberg.yaml or PYICEBERG_CATALOG__...",
    )
    version: int | None = Field(None, ge=1, description="dataset version; the newest if absent")
