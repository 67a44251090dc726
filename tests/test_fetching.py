"""Reading images: how much at a time, what is tried again, and when a store counts as gone."""

import errno
import os
import queue
import socket
import ssl

import fsspec
import pyarrow as pa
import pytest
import s3fs
from botocore.exceptions import ClientError, EndpointConnectionError
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from s3fs.errors import translate_boto_error

import pipeline.fetching
from pipeline.fetching import (
    FetchSettings,
    Request,
    fetch,
    fetch_ahead,
    in_groups,
    is_transient,
)
from pipeline.stages.fetch import FetchDecode
from pipeline.web import RefusedError, WebAccess
from schemas.annotate_config import SourceSettings
from schemas.annotation import INVENTORY, image_id, table_from_rows
from schemas.errors import SourceError, StoreUnavailableError

SETTINGS = FetchSettings(max_bytes=1000, attempts=3, web=WebAccess(False, 5))
MIB = 2**20


class FaultyStore(MemoryFileSystem):
    """A store under az:// that does what a file's name says, and remembers what it was asked."""

    protocol = "az"
    cachable = False
    asked: list[tuple[str, int]] = []  # noqa: RUF012 - shared by its instances, which fsspec makes

    def cat_file(self, path, start=None, end=None, **_):
        name = path.rpartition("/")[2]
        tries = sum(asked == name for asked, _ in self.asked)
        self.asked.append((name, end))
        if name.startswith("down"):
            raise ConnectionResetError("reset by peer")
        if name.startswith("denied"):
            raise PermissionError("Forbidden")
        if name.startswith("slow") and tries < 2:
            raise OSError(errno.EBUSY, "SlowDown")
        whole = b"x" * int(name.rpartition("-")[2])
        return whole[: 5 if name.startswith("cut") and tries < 1 else end]


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(pipeline.fetching, "_BACKOFF_S", 0.0)
    monkeypatch.setattr(FaultyStore, "asked", [])
    fsspec.register_implementation("az", FaultyStore, clobber=True)
    yield FaultyStore
    del _registry["az"]


def fetch_one(name, size_bytes=None, settings=SETTINGS):
    return fetch([Request(f"az://box/{name}", size_bytes=size_bytes)], settings)[0]


@pytest.mark.parametrize(
    "sizes, groups",
    [
        ([], []),
        ([MIB] * 3, [3]),
        ([200 * MIB, MIB, MIB], [1, 2]),
        ([40 * MIB, 40 * MIB, 20 * MIB], [1, 2]),
        ([None] * 17, [16, 1]),
        ([0, 0], [2]),
        ([10] * 70, [32, 32, 6]),
    ],
    ids=["none", "small", "one too large", "two and one", "unlisted", "empty", "many"],
)
def test_images_are_fetched_as_many_at_a_time_as_memory_holds(sizes, groups):
    requests = [Request(f"az://{n}", size_bytes=size) for n, size in enumerate(sizes)]
    found = list(in_groups(requests))
    assert [len(group) for group in found] == groups
    assert [request for group in found for request in group] == requests


def test_no_more_is_asked_for_than_was_listed_or_may_be(store):
    assert fetch_one("a-10", size_bytes=10) == b"x" * 10
    assert fetch_one("b-10", size_bytes=None) == b"x" * 10
    assert fetch_one("c-5000", size_bytes=None) == b"x" * 1001
    assert store.asked == [("a-10", 11), ("b-10", 1001), ("c-5000", 1001)]


def test_a_file_that_grew_since_it_was_listed_is_read_whole(store):
    assert fetch_one("a-500", size_bytes=10) == b"x" * 500
    assert fetch_one("b-5000", size_bytes=10) == b"x" * 1001
    assert [end for _, end in store.asked] == [11, 1001, 11, 1001]


def test_a_body_shorter_than_listed_is_asked_for_again(store):
    assert fetch_one("cut-10", size_bytes=10) == b"x" * 10
    assert len(store.asked) == 2
    short = fetch_one("shrunk-9", size_bytes=10)
    assert isinstance(short, ConnectionError)
    assert "9 of the listed 10 bytes" in str(short)
    assert len(store.asked) == 2 + SETTINGS.attempts


def test_what_failed_for_a_moment_is_tried_again_and_the_rest_is_not(store):
    names = ["good-1", "slow-2", "denied-3", "down-4"]
    good, slow, denied, down = fetch([Request(f"az://box/{name}") for name in names], SETTINGS)
    assert (good, slow) == (b"x", b"xx")
    assert isinstance(denied, PermissionError) and isinstance(down, ConnectionResetError)
    assert [sum(name == asked for asked, _ in store.asked) for name in names] == [1, 3, 1, 3]


def test_pauses_between_attempts_grow_and_are_spread(store, monkeypatch):
    monkeypatch.setattr(pipeline.fetching, "_BACKOFF_S", 0.5)
    pauses = []
    monkeypatch.setattr(pipeline.fetching.time, "sleep", pauses.append)
    for _ in range(20):
        fetch_one("down-1", settings=FetchSettings(1000, 9, WebAccess(False, 5)))
    first, second, last = pauses[0::8], pauses[1::8], pauses[7::8]
    assert len(pauses) == 160
    assert min(first) >= 0.5 and max(first) <= 1.0 <= min(second) and max(second) <= 2.0
    assert min(last) >= 10 and max(last) <= 20
    assert len(set(first)) > 10


def s3_error(code, status):
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "GetObject"))


@pytest.mark.parametrize(
    "error, transient",
    [
        (s3_error("SlowDown", 503), True),
        (s3_error("InternalError", 500), True),
        (s3_error("RequestTimeout", 408), True),
        (s3_error("TooManyRequests", 429), True),
        (s3_error("ExpiredToken", 400), True),  # of our credentials, not of the file
        (s3_error("AccessDenied", 403), False),
        (s3_error("NoSuchKey", 404), False),
        (s3_error("InvalidObjectState", 403), False),
        (s3_error("InvalidRequest", 400), False),
        (EndpointConnectionError(endpoint_url="http://x"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("SlowDown"), True),
        (OSError(errno.EIO, "disk"), True),
        (OSError(errno.ENAMETOOLONG, "name"), False),
        (OSError(errno.ELOOP, "link"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (IsADirectoryError(), False),
        (NotADirectoryError(), False),
        (RefusedError(), False),
        (SourceError("x"), False),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (socket.gaierror(socket.EAI_AGAIN, "later"), True),
        (ssl.SSLCertVerificationError(), False),
        (b"", False),
    ],
    ids=repr,
)
def test_failures_are_for_now_or_for_good(error, transient):
    assert is_transient(error) == transient


def test_a_place_that_never_ends_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    paths = [f"file://{tmp_path}/pipe.png", "file:///dev/zero", f"file://{tmp_path}"]
    pipe, device, folder = fetch([Request(path) for path in paths], SETTINGS)
    assert isinstance(pipe, RefusedError) and isinstance(device, RefusedError)
    assert isinstance(folder, IsADirectoryError)


def run_stage(*names, **settings):
    rows = [
        {"image_id": image_id(name), "uri": f"az://box/{name}", "size_bytes": None}
        for name in names
    ]
    stage = FetchDecode(32, 64, SourceSettings(fetch_attempts=2, **settings))
    errors = stage(table_from_rows(rows, INVENTORY))["error"].to_pylist()
    return [f"{error['stage']}/{error['code']}" for error in errors]


def test_a_store_that_gives_no_image_of_a_batch_stops_the_run(store):
    with pytest.raises(
        StoreUnavailableError, match=r"none of 2 images .* az://box/down-1: .*reset"
    ):
        run_stage("down-1", "down-2")


def test_the_next_group_is_read_while_one_is_at_work(monkeypatch):
    asked = queue.Queue()

    def read(group, _settings):
        asked.put(group)
        return [group.encode()]

    monkeypatch.setattr(pipeline.fetching, "fetch", read)
    groups = fetch_ahead(["first", "second", "third"], SETTINGS)
    assert next(groups) == [b"first"]
    assert [asked.get(timeout=10) for _ in range(2)] == ["first", "second"]
    assert asked.empty()  # one group ahead, no more: their bytes are in memory
    assert list(groups) == [[b"second"], [b"third"]]
    assert list(fetch_ahead([], SETTINGS)) == []


def listed(*names):
    rows = [{"image_id": image_id(name), "uri": f"az://box/{name}"} for name in names]
    return table_from_rows(rows, INVENTORY)


def test_what_is_read_ahead_comes_as_it_does_else(store):
    stage = FetchDecode(32, 64, SourceSettings(fetch_attempts=2, max_image_bytes=4999))
    names = [f"{kind}-{n}" for n in range(1, 30) for kind in ("a", "down", "denied")]
    ahead = pa.concat_tables(stage.each(listed(*names)))
    sevens = [names[start : start + 7] for start in range(0, len(names), 7)]
    assert ahead == pa.concat_tables(stage(listed(*seven)) for seven in sevens)
    assert ahead["uri"].to_pylist() == [f"az://box/{name}" for name in names]


def test_a_store_that_gives_nothing_any_more_stops_the_run(store):
    stage = FetchDecode(32, 64, SourceSettings(fetch_attempts=1))
    good = [f"a-{n}" for n in range(1, 33)]
    tables = stage.each(listed(*good, *(f"down-{n}" for n in range(40)), *good))
    with pytest.raises(StoreUnavailableError, match=r"none of 16 images .* az://box/down-0: "):
        next(tables)


def test_large_images_that_come_one_at_a_time_are_no_excuse_for_a_store(store, monkeypatch):
    monkeypatch.setattr(pipeline.fetching, "_IN_FLIGHT_BYTES", 1)
    stage = FetchDecode(32, 64, SourceSettings(fetch_attempts=1))
    lost = [f"down-{n}" for n in range(8)]
    with pytest.raises(StoreUnavailableError, match="none of 8 images"):
        stage(listed(*lost, "a-1"))
    few = stage(listed(*lost[:7], "a-1"))["error"].to_pylist()
    assert [error["code"] for error in few] == ["unavailable"] * 7 + ["not_an_image"]


def test_images_that_fail_among_others_are_rows(store):
    assert run_stage("down-1", "a-4", "down-2") == [
        "fetch/unavailable",
        "decode/not_an_image",
        "fetch/unavailable",
    ]
    assert run_stage("down-1") == ["fetch/unavailable"]  # one alone may be its own fault
    assert run_stage("down-1", "denied-1") == ["fetch/unavailable", "fetch/access_denied"]
    assert run_stage("denied-1", "denied-2") == ["fetch/access_denied"] * 2


def test_a_body_over_the_limit_is_refused_where_no_size_was_listed(store):
    assert run_stage("a-5000", max_image_bytes=4999) == ["fetch/too_many_bytes"]
    assert run_stage("a-5000", max_image_bytes=5000) == ["decode/not_an_image"]


@pytest.mark.s3
def test_a_real_s3_server_gives_what_it_has(s3_server):
    fs = s3fs.S3FileSystem()
    fs.mkdir("fetching")
    fs.pipe_file("fetching/empty.png", b"")
    fs.pipe_file("fetching/some.png", b"x" * 700)
    fs.pipe_file("fetching/large.png", b"x" * 5000)
    names = ["empty", "some", "large", "absent"]
    uris = [f"s3://fetching/{name}.png" for name in names]
    empty, some, large, absent = fetch([Request(uri) for uri in uris], SETTINGS)
    assert (empty, some, large) == (b"", b"x" * 700, b"x" * 1001)
    assert isinstance(absent, FileNotFoundError)
