"""Planted credentials are found nowhere: in output, logs, tracebacks, datasets, files of Ray."""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs
from PIL import Image

import pipeline.fetching
from jobs.cli import main
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.secrets import HidingFormatter, hide_all_secrets, hide_in_output, hide_secrets
from pipeline.stages.fetch import FetchDecode
from schemas.annotate_config import SourceSettings
from schemas.annotation import INVENTORY, image_id, table_from_rows
from schemas.errors import StoreUnavailableError
from tests.dataset_checks import rows_of
from tests.servers import S3Server

KEY, TOKEN = "plantedAwsSecretKey0123456789", "plantedAwsSessionToken0123456789"
SIGNATURE, LATER, PASSWORD = "plantedSignature01", "plantedSignature02", "plantedPassword03"
PLANTED = (KEY, TOKEN, SIGNATURE, LATER, PASSWORD)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 40)).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path.partition("?")[0]
        if kind == "/good.png" and SIGNATURE in self.path:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())
        elif kind == "/moved.png":
            self.send_response(302)
            self.send_header("Location", f"ftp://me:{PASSWORD}@host/x?X-Amz-Signature={LATER}")
            self.end_headers()
        else:
            self.send_error(503, f"no {self.path} for {LATER}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"https://me:{PASSWORD}@h/x?a=1", "https://h/x?a=1"),
        (f"GET https://h/x?X-Amz-Signature={SIGNATURE} 403", "GET https://h/x 403"),
        (f"'x-amz-security-token': 1, signature={SIGNATURE}&b", "signature=***&b"),
        (f"Authorization: AWS4-HMAC Signature={SIGNATURE}", "Authorization: ***"),
        (f"{{'Authorization': b'AWS4 {SIGNATURE}'}}", "{'Authorization': b'***'}"),
        (f"key is {KEY}.", "key is ***."),
    ],
    ids=["user info", "query", "parameter", "header", "headers", "environment"],
)
def test_a_secret_is_taken_out_of_a_text(
    monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    assert shown in hide_secrets(text)
    assert not any(planted in hide_secrets(text) for planted in PLANTED)
    assert hide_all_secrets({"a": text, "b": 1}) == {"a": hide_secrets(text), "b": 1}


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "DB_PASSWORD",
        "GOOGLE_CREDENTIALS",
        "OSS_ACCESSKEY",
        "apikey",
    ],
)
def test_what_a_variable_of_a_secrets_name_holds_is_taken_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, PASSWORD)
    assert hide_secrets(f"with {PASSWORD}, twice {PASSWORD}") == "with ***, twice ***"


def test_what_other_variables_and_short_ones_hold_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE_OF_LABELS", "labels-of-today")
    monkeypatch.setenv("HF_TOKEN", "sevenof")
    assert hide_secrets("labels-of-today sevenof") == "labels-of-today sevenof"
    monkeypatch.setenv("HF_TOKEN", "eight-of")
    assert hide_secrets("eight-of") == "***"


def test_logs_and_tracebacks_hide_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    hide_in_output()
    hide_in_output()
    assert isinstance(handler.formatter, HidingFormatter)
    try:
        raise ValueError(f"https://h/x?X-Amz-Signature={SIGNATURE} {KEY}")
    except ValueError as error:
        logging.getLogger("anything").error("at %s", KEY, exc_info=True)
        sys.excepthook(type(error), error, error.__traceback__)
    for text in (stream.getvalue(), capsys.readouterr().err):
        assert "ValueError" in text and "https://h/x" in text
        assert not any(planted in text for planted in PLANTED)
    assert "ERROR at ***" in stream.getvalue()


@pytest.mark.parametrize(
    "source, output",
    [
        (f"https://me:{PASSWORD}@host/a.png", "labels"),
        (f"https://host/a.png?X-Amz-Signature={SIGNATURE}", "labels"),
        (f"s3://key:{PASSWORD}@bucket/a", "labels"),
        (f"ftp://me:{PASSWORD}@host/a?token={SIGNATURE}", "labels"),
        (".", f"s3://key:{PASSWORD}@bucket/labels"),
        (".", f"https://host/labels?sig={SIGNATURE}"),
    ],
)
def test_a_refused_setting_is_told_without_its_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    output: str,
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    arguments = ["annotate", source, "--output", output, "--vocabulary", str(EMBEDDED_VOCABULARY)]
    assert main(arguments) == 2
    printed = "".join(capsys.readouterr())
    assert "segmill annotate: " in printed
    assert not any(planted in printed for planted in PLANTED)


def test_an_exception_carries_no_secret_to_another_process(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.fetching, "_BACKOFF_S", 0.0)
    monkeypatch.setattr(pipeline.stages.fetch, "WEB_SCHEMES", ())  # as if it were a store of ours
    rows = [
        {"image_id": image_id(name), "uri": f"{web}/{name}", "signature": f"sig={SIGNATURE}"}
        for name in ("a", "b")
    ]
    stage = FetchDecode(32, 64, SourceSettings(allow_private_addresses=True, fetch_attempts=1))
    with pytest.raises(StoreUnavailableError) as caught:
        stage(table_from_rows(rows, INVENTORY))
    told = "".join(traceback.format_exception(caught.value))
    assert "503" in told
    for text in (told, pickle.dumps(caught.value).decode("latin-1")):
        assert not any(planted in text for planted in PLANTED)


RUN = """
import json, os, sys
import ray
from jobs.cli import main
ray.init(address="local", num_cpus=6, include_dashboard=False, object_store_memory=2**27)
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
config = ray._private.worker.global_worker.core_worker.get_job_config()
print("JOBS", ray._private.state.jobs(), config, codes)
"""


@pytest.mark.ray
def test_a_whole_run_writes_no_secret_anywhere(web: str, s3_server: S3Server) -> None:
    # The path must be short: Ray makes sockets under it.
    work = Path(tempfile.mkdtemp(prefix="sm", dir="/tmp"))
    try:
        _run_and_search(work, web, s3_server)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_and_search(work: Path, web: str, s3_server: S3Server) -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("secrets")
    fs.pipe_file("secrets/a.png", png())
    entries = [f"{web}/{name}?X-Amz-Signature={SIGNATURE}&id=1" for name in
               ("good.png", "moved.png", "fails.png")]  # fmt: skip
    dead = f"http://127.0.0.1:9/x?X-Amz-Signature={SIGNATURE}"
    listing = work / "list.txt"
    listing.write_text("\n".join([*entries, dead, "s3://secrets/a.png", "s3://secrets/gone.png"]))
    annotate = ["annotate", str(listing), "--output", str(work / "labels"), "--vocabulary",
                str(EMBEDDED_VOCABULARY), "--proposer", "felzenszwalb", "--max-bad-fraction", "1",
                "--allow-private-addresses", "--fetch-attempts", "1"]  # fmt: skip
    show = ["report", str(work / "labels"), "--output", str(work / "report.html")]
    environment = {
        **os.environ, **s3_server.environment, "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN, "SEGMILL_LOG_LEVEL": "DEBUG", "RAY_TMPDIR": str(work / "ray"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([annotate, show])],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "JOBS" in done.stdout and done.stdout.rstrip().endswith("[0, 0]"), done.stderr[-3000:]
    rows = {Path(row["uri"]).name: row for row in rows_of(str(work / "labels"))}
    codes = {name: row["error"] and row["error"]["code"] for name, row in rows.items()}
    assert codes == {
        "good.png?id=1": None,
        "moved.png?id=1": "refused",
        "fails.png?id=1": "unavailable",
        "x": "unavailable",
        "a.png": None,
        "gone.png": "not_found",
    }
    # That debug logs of the clients were there to leak, and Ray's files to be searched.
    assert "botocore" in done.stderr
    files = [path for path in work.rglob("*") if path.is_file() and path != listing]
    assert {"report.html", "config.json", "v000001.json", "raylet.out"} <= {f.name for f in files}
    texts = {str(path): path.read_bytes().decode("latin-1") for path in files}
    texts |= {"stdout": done.stdout, "stderr": done.stderr, "rows": str(rows)}
    found = {(name, secret) for name, text in texts.items() for secret in PLANTED if secret in text}
    assert found == set()
