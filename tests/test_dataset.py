"""Writing parts, publishing versions, and reading them with and without our code."""

import hashlib
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pipeline.dataset import (
    newest_version,
    publish,
    read_manifest,
    read_rows,
)
from pipeline.files import write_bytes
from pipeline.parts import Share, merge_images, write_images
from pipeline.segments import encode_segments
from schemas.annotation import ANNOTATED, LABELLED, QUARANTINED, SCHEMA_VERSION, image_id
from schemas.errors import OutputError, PublicationError, SchemaError
from tests.helpers import draw_classes
from tests.test_manifest import MANIFEST

NAMES = ("sky", "cat", "tree")
CLASSES = draw_classes("001", "021")


def labelled(uri, classes=CLASSES):
    segments = encode_segments(classes, np.full(classes.shape, 0.5, np.float32), NAMES, 0.0)
    return base_row(uri) | {
        "height": classes.shape[0],
        "width": classes.shape[1],
        "status": LABELLED,
        "n_proposals": 7,
        "coverage": 1.0,
        "mean_score": 0.5,
        "segments": segments,
    }


def quarantined(uri, stage="decode", code="corrupt"):
    error = {"stage": stage, "code": code, "message": "why"}
    return base_row(uri) | {"status": QUARANTINED, "error": error, "segments": []}


def base_row(uri):
    return {
        "image_id": image_id(uri),
        "uri": uri,
        "fingerprint": "f",
        "run_id": "run",
        "annotator": "model",
        "n_proposals": 0,
    }


def table(*rows):
    return pa.Table.from_pylist(list(rows), schema=ANNOTATED)


ROWS = table(labelled("c.png"), quarantined("a.png"), labelled("b.png"), labelled("d.png"))


@pytest.fixture
def dataset(tmp_path):
    return str(tmp_path / "labels")


def test_a_part_is_sorted_and_described(dataset):
    record = write_images(dataset, "run-1", ROWS)
    path = f"{dataset}/{record.path}"
    written = pq.read_table(path, partitioning=None)
    ids = written["image_id"].to_pylist()
    assert ids == sorted(ids) == sorted(ROWS["image_id"].to_pylist())
    assert (written.schema, written.schema.metadata) == (ANNOTATED, ANNOTATED.metadata)
    with open(path, "rb") as file:
        data = file.read()
    assert record.model_dump() == {
        "path": f"images/run=run-1/part-{hashlib.sha256(data).hexdigest()[:24]}.parquet",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "rows": 4,
        "labelled": 3,
        "quarantined": 1,
        "reasons": {"decode/corrupt": 1},
    }


def test_quarantined_rows_are_counted_by_reason(dataset):
    rows = table(
        quarantined("a", "fetch", "not_found"),
        quarantined("b"),
        labelled("c"),
        quarantined("d"),
    )
    record = write_images(dataset, "run", rows)
    assert (record.rows, record.labelled, record.quarantined) == (4, 1, 3)
    assert record.reasons == {"decode/corrupt": 2, "fetch/not_found": 1}


def test_an_empty_part_can_be_written(dataset):
    record = write_images(dataset, "run", ANNOTATED.empty_table())
    assert (record.rows, record.labelled, record.quarantined, record.reasons) == (0, 0, 0, {})
    assert pq.read_table(f"{dataset}/{record.path}", partitioning=None).num_rows == 0


def test_a_retried_write_gives_the_same_file(dataset, tmp_path):
    first = write_images(dataset, "run", ROWS)
    again = write_images(dataset, "run", ROWS.take([2, 0, 3, 1]))
    assert again == first
    assert [path.name for path in tmp_path.rglob("part-*")] == [first.path.rpartition("/")[2]]


def test_a_table_of_other_columns_is_not_written(dataset, tmp_path):
    with pytest.raises(SchemaError):
        write_images(dataset, "run", ROWS.drop_columns(["uri"]))
    assert list(tmp_path.rglob("*.parquet")) == []


def test_pandas_reads_a_part_without_our_code(dataset):
    record = write_images(dataset, "run", ROWS)
    frame = pd.read_parquet(f"{dataset}/{record.path}").set_index("uri")
    row = frame.loc["b.png"]
    size = [int(row["height"]), int(row["width"])]
    owners = np.full(size, -1)
    for segment in row["segments"]:
        mask = coco_mask.decode({"size": size, "counts": segment["counts"]}).astype(bool)
        assert mask.sum() == segment["area"]
        owners[mask] = segment["class_index"]
    np.testing.assert_array_equal(owners, CLASSES)
    assert frame.loc["a.png", "error"]["code"] == "corrupt"
    assert len(frame.loc["a.png", "segments"]) == 0


def test_duckdb_asks_about_segments_in_sql(dataset):
    write_images(dataset, "run", ROWS[:2])
    write_images(dataset, "run", ROWS[2:])
    found = duckdb.sql(
        f"""
        select segment.label, count(*) as images, sum(segment.area) as area
        from (select unnest(segments) as segment
              from read_parquet('{dataset}/images/*/*.parquet', hive_partitioning = false)
              where status = 'labelled')
        group by all order by area desc
        """
    ).fetchall()
    assert found == [("sky", 3, 9), ("cat", 3, 6), ("tree", 3, 3)]
    reasons = duckdb.sql(
        f"""select error.stage || '/' || error.code, count(*)
        from '{dataset}/images/*/*.parquet' where status = 'quarantined' group by all"""
    ).fetchall()
    assert reasons == [("decode/corrupt", 1)]


def test_a_published_version_is_the_one_that_is_read(dataset):
    first = write_images(dataset, "one", ROWS[:2])
    publish(dataset, MANIFEST.model_copy(update={"version": 1, "images": (first,)}))
    write_images(dataset, "crashed", ROWS)  # a part without a manifest is never read
    second = write_images(dataset, "two", ROWS[2:])
    publish(dataset, MANIFEST.model_copy(update={"version": 2, "images": (first, second)}))

    assert newest_version(dataset) == read_manifest(dataset).version == 2
    newest = [
        row for part in read_rows(dataset, read_manifest(dataset)) for row in part.to_pylist()
    ]
    assert sorted(row["uri"] for row in newest) == ["a.png", "b.png", "c.png", "d.png"]
    oldest = pa.concat_tables(read_rows(dataset, read_manifest(dataset, 1)))
    assert sorted(oldest["uri"].to_pylist()) == ["a.png", "c.png"]


def test_rows_come_in_batches_with_the_asked_columns(dataset):
    record = write_images(dataset, "run", ROWS)
    manifest = MANIFEST.model_copy(update={"images": (record,)})
    batches = list(read_rows(dataset, manifest, ["uri", "segments"], batch_rows=3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert batches[0].column_names == ["uri", "segments"]


@pytest.mark.parametrize(
    "damage, words",
    [
        (Path.unlink, "it does not exist"),
        (lambda file: file.write_bytes(file.read_bytes()[:99]), "ArrowInvalid"),
    ],
    ids=["missing", "cut"],
)
def test_rows_of_a_file_that_cannot_be_read_are_an_error_of_one_line(dataset, damage, words):
    record = write_images(dataset, "run", ROWS)
    damage(Path(dataset) / record.path)
    manifest = MANIFEST.model_copy(update={"images": (record,)})
    with pytest.raises(OutputError, match=rf"^cannot read {record.path} of .*labels: {words}"):
        list(read_rows(dataset, manifest))


@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_version_is_published_once_and_the_first_stays(dataset, store):
    dataset = dataset if store == "local" else "memory://test-dataset-once/labels"
    publish(dataset, MANIFEST)
    late = MANIFEST.model_copy(update={"run_id": "late"})
    with pytest.raises(PublicationError, match=r"version 3 of .* was published by another run"):
        publish(dataset, late)
    assert read_manifest(dataset) == MANIFEST
    publish(dataset, late.model_copy(update={"version": 4}))
    assert read_manifest(dataset).run_id == "late"
    assert read_manifest(dataset, 3) == MANIFEST


def test_publishing_and_writing_leave_no_drafts(dataset, tmp_path):
    publish(dataset, MANIFEST)
    with pytest.raises(PublicationError):
        publish(dataset, MANIFEST.model_copy(update={"run_id": "late"}))
    write_bytes(dataset, "_runs/run/config.json", b"{}")
    files = sorted(path.relative_to(dataset).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == ["_manifest/v000003.json", "_runs/run/config.json"]


def test_files_that_are_no_manifests_are_no_versions(dataset):
    for name in ("v000007.json.0a.draft", "vx.json", "notes.json", "v.json"):
        write_bytes(dataset, f"_manifest/{name}", b"{}")
    assert newest_version(dataset) == 0
    publish(dataset, MANIFEST)
    assert newest_version(dataset) == 3


def test_a_version_that_is_not_there_is_named(dataset):
    assert newest_version(dataset) == 0
    with pytest.raises(OutputError, match="labels holds no published dataset"):
        read_manifest(dataset)
    publish(dataset, MANIFEST)
    with pytest.raises(OutputError, match=r"cannot read version 9 of .*labels: it does not exist"):
        read_manifest(dataset, 9)


def test_a_dataset_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    target = str(tmp_path / "file")
    for attempt in (
        lambda: write_bytes(target, "a/b.json", b"{}"),
        lambda: write_images(target, "run", ROWS),
        lambda: publish(target, MANIFEST),
    ):
        with pytest.raises(OutputError, match=r"cannot .* .*file: a part of the path is a file"):
            attempt()


def test_a_rewritten_file_is_whole(dataset):
    write_bytes(dataset, "x.json", b"long content")
    write_bytes(dataset, "x.json", b"new")
    with open(f"{dataset}/x.json", "rb") as file:
        assert file.read() == b"new"


def test_merging_a_file_that_is_gone_is_an_error_of_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"cannot read images/gone\.parquet of .*does not exist"):
        merge_images(str(tmp_path), "run", [Share("images/gone.parquet")])


@pytest.mark.parametrize("schema", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1], ids=["old", "new"])
def test_rows_of_another_schema_are_refused(dataset, schema):
    publish(dataset, MANIFEST.model_copy(update={"schema_version": schema}))
    words = rf"version 3 of .* has rows of schema {schema}, this Segmill .* {SCHEMA_VERSION}:"
    with pytest.raises(OutputError, match=words):
        read_manifest(dataset)


def test_a_file_with_a_number_and_another_letter_is_no_version(dataset):
    publish(dataset, MANIFEST)
    write_bytes(dataset, "_manifest/w000009.json", b"{}")
    assert newest_version(dataset) == 3
