"""Versions as snapshots of an Iceberg table: the same rows, none copied, old ones still there."""

import json

import pyarrow as pa
import pyiceberg.catalog
import pytest
from pyiceberg.utils.config import Config

from jobs.cli import main
from jobs.register import register
from pipeline.dataset import publish, read_manifest, read_rows
from schemas.errors import OutputError, SettingsError
from schemas.register_config import RegisterConfig
from schemas.vocabulary import Vocabulary
from tests.helpers import draw_classes
from tests.test_report import labelled_row, quarantined_row, write_dataset

NAMES = ("sky", "tree")

pytestmark = pytest.mark.filterwarnings("ignore")  # pyiceberg's own


@pytest.fixture(autouse=True)
def catalog(tmp_path, monkeypatch):
    """A catalog in a file, told by the environment as users tell it."""
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # read at import
    return pyiceberg.catalog.load_catalog("default")


@pytest.fixture
def dataset(tmp_path):
    """Version 1: two files, of which one image of the second is quarantined."""
    first, second = (
        labelled_row(tmp_path / f"{name}.png", NAMES, draw_classes(*picture))
        for name, picture in (("a", ("001.", "0011")), ("b", ("1111", "0000")))
    )
    files = [[first], [second, quarantined_row(f"{tmp_path}/c.png")]]
    return write_dataset(tmp_path / "labels", files, Vocabulary.of(NAMES))


def config(dataset, **changes):
    return RegisterConfig(**{"dataset": dataset, "table": "vision.labels"} | changes)


def rows_of(dataset, version=None):
    tables = list(read_rows(dataset, read_manifest(dataset, version)))
    return pa.concat_tables(tables).to_pylist()


def publish_second(dataset):
    """Publish version 2, which holds the second file of version 1 alone."""
    first = read_manifest(dataset)
    kept = first.images[1:]
    counts = first.counts.model_copy(update={"inventory": 2, "labelled": 1})
    update = {"version": 2, "images": kept, "counts": counts, "run_id": "another"}
    publish(dataset, first.model_copy(update=update))


def test_a_table_shows_the_rows_of_a_version(dataset, catalog):
    result = register(config(dataset))
    assert (result.version, result.files, result.rows, result.registered) == (1, 2, 3, True)
    table = catalog.load_table("vision.labels")
    assert table.scan().to_arrow().to_pylist() == rows_of(dataset)
    assert table.current_snapshot().snapshot_id == result.snapshot
    again = register(config(dataset))
    assert not again.registered and again.snapshot == result.snapshot
    assert len(catalog.load_table("vision.labels").snapshots()) == 1


def test_a_new_version_takes_the_place_of_the_old_which_stays_a_snapshot(dataset, catalog):
    first = register(config(dataset))
    publish_second(dataset)
    assert register(config(dataset)).registered
    table = catalog.load_table("vision.labels")
    assert table.scan().to_arrow().to_pylist() == rows_of(dataset, 2)
    assert table.scan(snapshot_id=first.snapshot).to_arrow().to_pylist() == rows_of(dataset, 1)
    assert table.current_snapshot().summary["segmill.version"] == "2"
    back = register(config(dataset, version=1))
    assert back.registered and back.version == 1
    table.refresh()
    assert table.scan().to_arrow().to_pylist() == rows_of(dataset, 1)


def test_what_cannot_be_is_told(dataset, tmp_path):
    register(config(dataset))
    other = write_dataset(
        tmp_path / "others",
        [[labelled_row(tmp_path / "d.png", NAMES, draw_classes("01"))]],
        Vocabulary.of(NAMES),
    )
    with pytest.raises(SettingsError, match=r"vision\.labels shows file://.*/labels, not file://"):
        register(config(other))
    with pytest.raises(OutputError, match="cannot read version 7"):
        register(config(dataset, version=7))
    with pytest.raises(SettingsError, match=r"catalog 'nowhere' did not take table vision\.labels"):
        register(config(dataset, catalog="nowhere"))
    with pytest.raises(ValueError, match="table"):
        config(dataset, table="labels")


def test_the_command(dataset, capsys):
    assert main(["register", dataset, "vision.labels"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["table"], printed["rows"], printed["registered"]) == ("vision.labels", 3, True)
