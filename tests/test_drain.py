"""`segmill drain`: what a cloud's notice says, over HTTP, and what Ray is told of it.

That Ray then puts nothing new on the machine is shown on several nodes by `make cluster-test`.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import jobs.drain
from jobs.cli import main
from pipeline.preemption import CLOUDS

TOKEN = "of-this-machine"


class Service(BaseHTTPRequestHandler):
    """The metadata services of both clouds, as their documentation describes them."""

    notices: list[str | None] = []  # noqa: RUF012 - what is told, one look after the other
    looks = 0

    def do_PUT(self) -> None:
        lifetime = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
        is_token = self.path == "/latest/api/token" and 1 <= lifetime <= 21_600
        self._answer(200 if is_token else 400, TOKEN)

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            allowed = self.headers["X-aws-ec2-metadata-token"] == TOKEN
        else:
            is_gcp = self.path == "/computeMetadata/v1/instance/preempted"
            allowed = is_gcp and self.headers["Metadata-Flavor"] == "Google"
        notice = self.notices[min(Service.looks, len(self.notices) - 1)]
        Service.looks += 1
        if not allowed:
            self._answer(401, "")
        elif notice is None:
            self._answer(404, "<html>")
        else:
            self._answer(int(notice) if notice.isdigit() else 200, notice)

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Service.looks = 0
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What Ray is told, in the place of a cluster."""
    found: list[tuple[str, float]] = []

    def drain_this_machine(address: str, reason: str, seconds: float) -> str:
        assert address == "auto"
        found.append((reason, seconds))
        return "n0de"

    monkeypatch.setattr(jobs.drain, "drain_this_machine", drain_this_machine)
    return found


def test_the_notice_of_aws_is_waited_for_and_says_when(
    service: str, told: list[tuple[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=90)
    action = json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"})
    # Nothing, trouble of the service, nothing, the notice.
    Service.notices = [None, "503", None, action]
    assert main(["drain", "--metadata-url", f"{service}/", "--poll-s", "0.01"]) == 0
    ((reason, seconds),) = told
    assert reason.startswith("AWS will terminate this machine at 20")
    assert 80 < seconds <= 90
    assert Service.looks == 4
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["node_id"], printed["reason"]) == ("n0de", reason)


def test_the_notice_of_gcp_leaves_the_seconds_that_are_set(
    service: str, told: list[tuple[str, float]]
) -> None:
    Service.notices = ["FALSE", "TRUE"]
    arguments = ["--cloud", "gcp", "--metadata-url", service, "--poll-s", "0.01"]
    assert main(["drain", *arguments, "--deadline-s", "30"]) == 0
    assert told == [("GCP preempts this machine", 30.0)]


def test_now_asks_no_service(told: list[tuple[str, float]]) -> None:
    assert main(["drain", "--now", "--metadata-url", "http://127.0.0.1:9"]) == 0
    assert told == [("drained by hand", 120.0)]


def test_a_machine_without_such_a_service_is_told_at_once(
    told: list[tuple[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", "--metadata-url", "http://127.0.0.1:9"]) == 2
    message = capsys.readouterr().err
    assert "the metadata service of aws at http://127.0.0.1:9 gives no answer" in message
    assert told == []


# In a process of its own: how Ray is asked is a state of the process.
DRAINED = """
import os
import ray

def init(**options):
    print(options["address"], os.environ.get("RAY_AUTH_MODE"))
    raise ConnectionError("there is no Ray")

ray.init = init
from pipeline.draining import drain_this_machine
drain_this_machine("10.0.0.1:6379", "by hand", 30.0)
"""


def test_a_token_that_is_there_is_shown_to_every_cluster(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", DRAINED], env={**kept, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["10.0.0.1:6379 token"], done.stderr
    assert "cannot be joined from here: there is no Ray" in done.stderr


def test_no_proxy_is_asked_for_the_machines_own_service(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Service.notices = [None]
    assert CLOUDS["aws"].notice(service) is None
