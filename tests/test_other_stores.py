"""Google's and Azure's stores: sources, files, the lock and publication, as on S3.

Google's is an emulator in this process, which knows no conditions on uploads: the one that we need
is added. For Azure there is none on the registry: start Azurite, or name an account of your own, in
AZURE_STORAGE_CONNECTION_STRING.
"""

import os
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO

import fsspec
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.dataset import newest_version, publish, read_manifest, read_rows
from pipeline.files import (
    create_bytes,
    delete_files,
    list_facts,
    list_files,
    read_bytes,
    write_bytes,
)
from pipeline.lock import DatasetLock, new_run_id
from pipeline.parts import recorded_parts, write_part
from pipeline.sources import Listing
from pipeline.stages.fetch import FetchDecode
from schemas.annotate_config import SourceSettings
from schemas.annotation import QUARANTINED
from schemas.errors import LockedError, PublicationError
from tests.servers import free_port
from tests.test_dataset import ROWS
from tests.test_manifest import MANIFEST


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    patched = pytest.MonkeyPatch()
    # Without, the client asks by gRPC first what kind of bucket it is: of an emulator for a minute.
    patched.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    upload = objects._multipart_upload

    def conditional(request, response, storage):
        if request.query.get("ifGenerationMatch") == ["0"]:
            try:
                storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
            except NotFound:
                pass
            else:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return response.json({"error": {"code": 412, "message": "conditionNotMet"}})
        return upload(request, response, storage)

    patched.setattr(objects, "_multipart_upload", conditional)
    port = free_port()
    patched.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    # What FSSPEC_GS_TOKEN=anon does where it is set before the process starts.
    patched.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield "gs"
    server.stop()
    patched.undo()


@pytest.fixture(params=["google", "azure"])
def box(request) -> str:
    """A new bucket, or container, as a URL."""
    if request.param == "google":
        scheme = request.getfixturevalue("google")
    else:
        pytest.importorskip("adlfs")
        if not os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
            pytest.skip("no Azure: AZURE_STORAGE_CONNECTION_STRING names neither it nor Azurite")
        scheme = "az"
    name = f"box-{time.monotonic_ns()}"
    fsspec.filesystem(scheme).mkdir(name)
    return f"{scheme}://{name}"


def test_files_are_whole_or_absent_and_created_once(box):
    labels = f"{box}/labels"
    write_bytes(labels, "a/one.json", b"1")
    write_bytes(labels, "a/one.json", b"one")
    assert read_bytes(labels, "a/one.json") == b"one"
    assert list_files(labels, "a") == ["a/one.json"]
    assert list_facts(labels, "a")["a/one.json"].size_bytes == 3
    assert create_bytes(labels, "v1", b"ours")
    assert not create_bytes(labels, "v1", b"theirs")
    assert create_bytes(labels, "v1", b"ours")  # an answer that was lost: it is there, and ours
    assert read_bytes(labels, "v1") == b"ours"
    delete_files(labels, ["a/one.json"])
    assert list_files(labels, "a") == []
    with pytest.raises(FileNotFoundError):
        read_bytes(labels, "a/one.json")


def test_images_are_listed_with_etags_and_decoded(box):
    fs = fsspec.filesystem(box.partition(":")[0])
    folder = f"{box.partition('//')[2]}/photos"
    picture = BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture, "jpeg")
    for name, data in (
        ("a.jpg", picture.getvalue()), ("deep/b c.jpg", picture.getvalue()),
        ("cut.jpg", picture.getvalue()[:300]), ("notes.txt", b"no image"),
    ):  # fmt: skip
        fs.pipe_file(f"{folder}/{name}", data)

    def listed() -> pa.Table:
        return pa.concat_tables(Listing(f"{box}/photos", (".jpg",))).sort_by("uri")

    images = listed()
    assert [uri.rpartition("photos/")[2] for uri in images["uri"].to_pylist()] == [
        "a.jpg", "cut.jpg", "deep/b c.jpg",
    ]  # fmt: skip
    assert None not in images["etag"].to_pylist()
    stage = FetchDecode(480, 640, SourceSettings())
    rows = stage(images).to_pylist()
    assert [(row["status"] == QUARANTINED, row["height"]) for row in rows] == [
        (False, 30), (True, None), (False, 30),
    ]  # fmt: skip
    fs.pipe_file(f"{folder}/a.jpg", picture.getvalue() + b" ")
    changed = listed()["etag"].to_pylist()
    assert [old == new for old, new in zip(images["etag"].to_pylist(), changed, strict=True)] == [
        False, True, True,
    ]  # fmt: skip


def test_of_two_runs_one_has_the_dataset_and_one_publishes_a_version(box):
    labels = f"{box}/labels"
    with DatasetLock(labels, new_run_id(), 60.0) as lock:
        with pytest.raises(LockedError), DatasetLock(labels, new_run_id(), 60.0):
            raise AssertionError("two hold it")
        part = write_part(labels, "run", ROWS)
        assert list(recorded_parts(labels).values()) == [part]
        lock.check()
    with DatasetLock(labels, new_run_id(), 60.0) as lock:
        assert lock.number == 2
    manifest = MANIFEST.model_copy(update={"version": 1, "images": (part.images,)})
    outcomes = []

    def attempt(run_id: str) -> None:
        try:
            publish(labels, manifest.model_copy(update={"run_id": run_id}))
            outcomes.append(run_id)
        except PublicationError:
            outcomes.append(None)

    threads = [threading.Thread(target=attempt, args=(f"run-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = filter(None, outcomes)
    assert (newest_version(labels), read_manifest(labels).run_id) == (1, winner)
    assert sum(map(len, read_rows(labels, read_manifest(labels)))) == len(ROWS)
