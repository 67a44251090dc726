"""Files of a dataset: whole or absent, one creator, retried where a store is in trouble."""

import errno
import threading
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from s3fs.errors import translate_boto_error

import pipeline.files
from pipeline.dataset import read_rows
from pipeline.exports import shards
from pipeline.files import (
    create_bytes,
    delete_files,
    list_facts,
    list_files,
    open_whole,
    read_bytes,
    read_with,
    write_bytes,
)
from pipeline.parts import read_columns, read_row_group
from schemas.errors import OutputError
from tests.servers import note_fetches
from tests.test_manifest import MANIFEST


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def dataset(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "labels")
    import s3fs

    request.getfixturevalue("s3_server")
    bucket = f"files-{tmp_path.name.replace('_', '-').lower()}"[:60].strip("-")
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/labels"


def test_what_is_written_is_read_listed_and_deleted(dataset):
    assert list_files(dataset, "") == []
    for path in ("b/c/2.json", "a.json", "b/1 with space.json"):
        write_bytes(dataset, path, path.encode())
    assert list_files(dataset, "") == ["a.json", "b/1 with space.json", "b/c/2.json"]
    assert list_files(dataset, "b") == ["b/1 with space.json", "b/c/2.json"]
    facts = list_facts(dataset, "b")["b/c/2.json"]
    assert facts.size_bytes == 10 and facts.changed > 1.6e9
    assert read_bytes(dataset, "a.json") == b"a.json"
    delete_files(dataset, ["b/c/2.json", "b/absent.json"])
    assert list_files(dataset, "b") == ["b/1 with space.json"]
    with pytest.raises(FileNotFoundError):
        read_bytes(dataset, "b/c/2.json")


def test_of_many_creators_one_wins_and_knows_it(dataset):
    won = []
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        if create_bytes(dataset, "v1.json", f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"writer {number}".encode() for number in won] == [read_bytes(dataset, "v1.json")]


def test_a_creation_whose_answer_was_lost_is_recognised(dataset):
    assert create_bytes(dataset, "v1.json", b"mine")
    assert create_bytes(dataset, "v1.json", b"mine")  # asked again by a retry
    assert not create_bytes(dataset, "v1.json", b"other")


def test_deleting_the_last_file_takes_its_empty_folders_but_not_the_dataset(tmp_path):
    dataset = str(tmp_path / "labels")
    write_bytes(dataset, "a/b/c.json", b"1")
    delete_files(dataset, ["a/b/c.json"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "labels"]


@pytest.fixture
def troubled(monkeypatch):
    """A store under az:// that fails with the errors it is given before it answers."""
    monkeypatch.setattr(pipeline.files, "_LONGEST_WAIT_S", 0.01)
    errors = []

    class Troubled(MemoryFileSystem):
        protocol = "az"
        store: dict[str, object] = {}  # noqa: RUF012
        cachable = False

        def cat_file(self, path, start=None, end=None, **kwargs):
            if errors:
                raise errors.pop(0)
            return super().cat_file(path, start, end, **kwargs)

        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            if errors:
                raise errors.pop(0)
            return super().pipe_file(path, value, mode, **kwargs)

        def open(self, path, mode="rb", **kwargs):
            if errors:
                raise errors.pop(0)
            return super().open(path, mode, **kwargs)

    monkeypatch.setitem(_registry, "az", Troubled)
    write_bytes("az://c/labels", "a", b"1")
    return errors


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "reset"), TimeoutError(), ConnectionResetError(), ValueError("odd body")],
    ids=["io", "timeout", "reset", "odd"],
)
def test_a_store_in_trouble_is_asked_again(troubled, error):
    troubled += [error] * 5
    assert read_bytes("az://c/labels", "a") == b"1"
    troubled += [error] * 6
    with pytest.raises(OutputError, match="cannot read az://c/labels"):
        read_bytes("az://c/labels", "a")


@pytest.mark.parametrize(
    "read",
    [
        lambda: read_columns("az://c/labels", "b", ["x"]),
        lambda: read_row_group("az://c/labels", "b", 0),
    ],
    ids=["columns", "row group"],
)
def test_a_store_in_trouble_is_asked_again_for_parts_of_a_file(troubled, read):
    buffer = BytesIO()
    pq.write_table(pa.table({"x": [1, 2]}), buffer)
    write_bytes("az://c/labels", "b", buffer.getvalue())
    troubled += [TimeoutError()] * 5
    assert read()["x"].to_pylist() == [1, 2]
    troubled += [TimeoutError()] * 6
    with pytest.raises(OutputError, match="cannot read b of az://c/labels"):
        read()


@pytest.mark.parametrize(
    "error, kind",
    [
        (FileNotFoundError(), FileNotFoundError),
        (PermissionError("no"), OutputError),
        (OSError(errno.EINVAL, "bad request"), OutputError),
    ],
    ids=["absent", "denied", "refused"],
)
def test_an_answer_is_taken_as_it_is(troubled, error, kind):
    troubled += [error, RuntimeError("asked again")]
    with pytest.raises(kind):
        read_bytes("az://c/labels", "a")
    assert len(troubled) == 1


def test_a_file_written_bit_by_bit_is_whole_or_as_it_was(tmp_path: Path) -> None:
    def write(*pieces: bytes) -> None:
        with open_whole(str(tmp_path), "deep/file") as file:
            for piece in pieces:
                file.write(piece)
                assert not (tmp_path / "deep" / "file").exists() or pieces[0] == b"second"

    write(b"fir", b"st")
    with pytest.raises(TypeError):
        write(b"second", None)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_bytes() == b"first"


@pytest.mark.parametrize("name", ["fsync", "replace", "link"])
def test_a_disk_that_is_full_keeps_no_half_written_file(tmp_path, monkeypatch, name):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline.files.os, name, fail)
    write = create_bytes if name == "link" else write_bytes
    with pytest.raises(OutputError, match="No space left"):
        write(str(tmp_path), "deep/file", b"data")
    assert list_files(str(tmp_path), "") == []


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_a_store_may_say_in_few_words_that_a_file_exists(troubled, code):
    """As MinIO does: without the condition that AWS repeats in its answer."""
    answer = ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")
    for data, is_ours in ((b"1", True), (b"2", False)):
        troubled.append(translate_boto_error(answer))
        assert create_bytes("az://c/labels", "a", data) == is_ours
    troubled.append(translate_boto_error(ClientError({"Error": {"Code": "400"}}, "PutObject")))
    with pytest.raises(OutputError):
        create_bytes("az://c/labels", "b", b"1")


MANY = MANIFEST.model_copy(update={"images": (SimpleNamespace(path="part"),)})


@pytest.mark.s3
@pytest.mark.parametrize(
    "read, mib",
    [
        (lambda dataset: read_columns(dataset, "part", ["uri"]), 1),
        (lambda dataset: list(read_rows(dataset, MANY, ["uri"])), 1),
        (lambda dataset: next(shards._read(dataset, shards.Rows("part", 0, 32, 0))), 5),
    ],
    ids=["columns", "rows", "export"],
)
def test_of_a_large_file_in_s3_little_is_read_besides(s3_server, monkeypatch, read, mib):
    fs = s3fs.S3FileSystem()
    fs.makedirs("parts", exist_ok=True)
    table = pa.table({name: [0] * 256 for name in shards._COLUMNS[:-1]})
    rng = np.random.default_rng(0)
    buffer = BytesIO()
    table = table.append_column("segments", [[rng.bytes(2**16) for _ in range(256)]])
    pq.write_table(table, buffer, write_batch_size=8)  # in pages of a megabyte
    fs.pipe_file("parts/labels/part", buffer.getvalue())
    fetched = note_fetches(monkeypatch)
    read("s3://parts/labels")
    assert buffer.tell() > 15 * 2**20 and sum(fetched) < mib * 2**20 and len(fetched) <= 5


@pytest.mark.s3
def test_a_whole_file_in_s3_is_read_at_once(s3_server, monkeypatch):
    fs = s3fs.S3FileSystem()
    fs.makedirs("parts", exist_ok=True)
    fs.pipe_file("parts/labels/whole", bytes(2**20))
    fetched = note_fetches(monkeypatch)
    assert read_with("s3://parts/labels", "whole", lambda stream: stream.read()) == bytes(2**20)
    assert fetched == [2**20]
