"""`segmill register`: a version of a dataset as a snapshot of an Iceberg table.

The table's snapshots name the files of the dataset, so that engines which read Iceberg (Spark,
Trino, DuckDB) see a version without a copy of it. One commit takes the files of the version before
out and those of this one in.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.dataset import read_manifest
from pipeline.storage import first_line, full_uri, hide_secrets, open_store
from schemas.annotation import ANNOTATED
from schemas.errors import OutputError, SegmillError, SettingsError
from schemas.manifest import Manifest
from schemas.register_config import RegisterConfig

if TYPE_CHECKING:
    from pyiceberg.table import Table

_DATASET: Final = "segmill.dataset"
_VERSION: Final = "segmill.version"
_RUN: Final = "segmill.run-id"


@dataclass(frozen=True)
class RegisterResult:
    """What the table shows now."""

    dataset: str
    table: str
    version: int
    snapshot: int
    files: int
    rows: int
    registered: bool  # False: it showed this version before


def register(config: RegisterConfig) -> RegisterResult:
    """Make the table show a version.

    Raises SettingsError where the catalog is unknown, does not answer, or has another dataset under
    this name, and OutputError where there is no such version.
    """
    manifest = read_manifest(config.dataset, config.version)
    fs, root = open_store(config.dataset, OutputError)
    address = full_uri(fs, root)
    with _errors(config):
        table = _table(config, address)
        shown = _shown(table)
        if shown.get(_DATASET, address) != address:
            raise SettingsError(
                f"table {config.table} shows {shown[_DATASET]}, not {hide_secrets(address)}; give "
                "this dataset a table of its own"
            )
        facts = {_VERSION: str(manifest.version), _RUN: manifest.run_id}
        registered = any(shown.get(name) != value for name, value in facts.items())
        if registered:
            _show(table, address, manifest, {**facts, _DATASET: address})
        snapshot = table.current_snapshot()
    return RegisterResult(
        dataset=hide_secrets(config.dataset),
        table=config.table,
        version=manifest.version,
        snapshot=snapshot.snapshot_id if snapshot else 0,
        files=len(manifest.images),
        rows=manifest.counts.inventory,
        registered=registered,
    )


def _table(config: RegisterConfig, address: str) -> "Table":
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError
    except ImportError:
        raise SettingsError(
            "register needs pyiceberg, which is not installed: pip install 'segmill[iceberg]'"
        ) from None
    catalog = load_catalog(config.catalog)
    try:
        return catalog.load_table(config.table)
    except NoSuchTableError:
        pass
    catalog.create_namespace_if_not_exists(config.table.rpartition(".")[0])
    return catalog.create_table(config.table, ANNOTATED, properties={_DATASET: address})


def _shown(table: "Table") -> dict[str, str]:
    """Return whose dataset the table shows, and which run's version of it."""
    snapshot = table.current_snapshot()
    summary = snapshot.summary.additional_properties if snapshot and snapshot.summary else {}
    return {**table.properties, **summary}


def _show(table: "Table", address: str, manifest: Manifest, facts: dict[str, str]) -> None:
    from pyiceberg.expressions import AlwaysTrue

    files = [f"{address}/{file.path}" for file in manifest.images]
    with _without_noise(), table.transaction() as change:
        if table.current_snapshot() is not None:
            change.delete(AlwaysTrue(), snapshot_properties=facts)
        change.add_files(files, snapshot_properties=facts, check_duplicate_files=False)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hide that columns have no statistics: of nested ones nobody asks them."""
    logger = logging.getLogger("pyiceberg.io.pyarrow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _errors(config: RegisterConfig) -> Iterator[None]:
    """Tell in one line what catalogs raise, which are of many kinds."""
    try:
        yield
    except SegmillError:
        raise
    except Exception as error:
        raise SettingsError(
            f"catalog {config.catalog!r} did not take table {config.table}: {first_line(error)}"
        ) from None
