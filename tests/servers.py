"""A real S3 server over HTTP for tests: moto's, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.error import URLError

import pytest
from s3fs import S3File

_START_TIMEOUT_S = 60


@dataclass(frozen=True)
class S3Server:
    """Where the server is, and the environment by which s3fs and the AWS SDK find it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def note_fetches(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the size of every part of a file asked of S3 from now on."""
    sizes: list[int] = []
    fetch = S3File._fetch_range

    def noting(file: S3File, start: int, end: int) -> bytes:
        sizes.append(end - start)
        data: bytes = fetch(file, start, end)
        return data

    patch.setattr(S3File, "_fetch_range", noting)
    return sizes


@contextmanager
def start_s3(settings: Mapping[str, str] | None = None) -> Iterator[S3Server]:
    """Start moto's server on a free port of this machine and stop it afterwards."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **(settings or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await(endpoint, process)
        yield S3Server(endpoint)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _await(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
        except (URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the S3 server did not start")
