"""One Ray and one S3 server for the whole session, each started by the first test that needs it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cores import cores
from tests.browser import Browser
from tests.forked_workers import forked_workers
from tests.servers import S3Server, start_s3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests through Ray ignore warnings, which are Ray's own: leaked sockets, deprecations."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("s3"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command under test did to the root logger, which is a process's own."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def shared() -> Path:
    """The sample data beside the checkout; a clone elsewhere does not have it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SEGMILL_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server over HTTP; the environment points at it the way AWS tools are pointed."""
    with start_s3() as server:
        previous = {name: os.environ.get(name) for name in server.environment}
        os.environ.update(server.environment)
        yield server
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def ray_session(s3_server: S3Server) -> Iterator[None]:
    """A local Ray, started once; after the S3 server, whose environment its workers inherit."""
    import ray

    with forked_workers() as executable:
        ray.init(
            address="local",
            num_cpus=max(8, 3 * cores()),  # as a run's own: its two actors have all cores each
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 * 2**20,
            runtime_env={"py_executable": executable},
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, started once; the tests that need it are skipped where there is none."""
    browser = Browser()
    yield browser
    browser.close()
