"""Settings of `segmill versions`, `verify` and `vacuum`."""

from pydantic import Field

from schemas.config import Config, DatasetUrl, DatasetVersion, LockTtl


class VersionsConfig(Config):
    """List the published versions of a dataset."""

    dataset: DatasetUrl


class VerifyConfig(Config):
    """Read a version again and check files, hashes, the account of rows, and label maps."""

    dataset: DatasetUrl
    version: DatasetVersion = None
    sample: int = Field(
        1000, ge=0, description="images, about, of which the label map is checked as well"
    )
    all_label_maps: bool = Field(False, description="check the label map of every image")


class VacuumConfig(Config):
    """Delete old versions, and files that no version names; shows only what it would delete."""

    dataset: DatasetUrl
    delete: bool = Field(False, description="really delete")
    keep_versions: int = Field(10, ge=1, description="the newest versions to keep")
    older_than_hours: float = Field(
        168.0, ge=0, description="keep every version and file that is younger"
    )
    lock_ttl_s: LockTtl = 60.0
