"""Web servers: what they send is bounded, and where they lead is checked at the socket."""

import gzip
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yarl
from PIL import Image

import pipeline.fetching
import pipeline.web
from pipeline.fetching import FetchSettings, Request, fetch, is_transient
from pipeline.sources import ListRules
from pipeline.stages.fetch import FetchDecode
from pipeline.storage import describe, join_signature, split_signature
from pipeline.web import RefusedError, WebAccess, is_public
from schemas.annotate_config import SourceSettings
from schemas.errors import SourceError
from tests.helpers import take_inventory

OPEN = WebAccess(allow_private=True, timeout_s=20)
GUARDED = WebAccess(allow_private=False, timeout_s=20)


def png(colour: tuple[int, int, int] = (9, 8, 7)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Answers on every loopback address, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.asked: list[str] = []
        self.hosts: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hosts.append(self.headers["Host"])
        self.server.headers.append(dict(self.headers))
        kind, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
        getattr(self, f"_{kind}", self._status)(rest)

    def _status(self, rest: str) -> None:
        self._answer(int(rest.partition(".")[0] or 404), b"")

    def _image(self, rest: str) -> None:
        self._answer(200, png())

    def _list(self, rest: str) -> None:
        body = self.path.partition("?")[2].replace(",", "\n").encode()
        self._answer(200, body)

    def _to(self, rest: str) -> None:
        self._answer(302, b"", Location=self.path.partition("?")[2])

    def _loop(self, rest: str) -> None:
        self._answer(302, b"", Location=f"/loop/{int(rest or 0) + 1}")

    def _packed(self, rest: str) -> None:
        self._answer(200, gzip.compress(bytes(10**7)), **{"Content-Encoding": "gzip"})

    def _short(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)

    def _slow(self, rest: str) -> None:
        time.sleep(2)
        self._answer(200, png())

    def _drip(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def _endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while self.server.sent < 10**9:
                self.server.sent += self.wfile.write(b"x" * 2**16)
        except OSError:
            pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Set-Cookie", "planted=1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(url: str, access: WebAccess = OPEN, max_bytes: int = 10**6) -> bytes | Exception:
    """Ask once."""
    return fetch([Request(url)], FetchSettings(max_bytes, 1, access))[0]


def test_a_file_is_read(server: Server) -> None:
    assert get(f"{server.url}/image/a.png") == png()
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "0.0.0.0",
        "192.0.0.192",
        "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::", "::1", "fd00:ec2::254", "fc00::1", "fe80::1", "fe80::1%lo", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1", "2001:0:4136:e378:8000:63bf:5601:5601",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0", "0",
     "127.0.0.1.", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]"],
)  # fmt: skip
def test_no_spelling_of_a_private_host_is_reached(server: Server, host: str) -> None:
    result = get(f"http://{host}:{server.server_port}/image", GUARDED)
    assert isinstance(result, Exception)
    assert not is_transient(result)
    assert server.asked == []


def test_a_name_is_judged_by_the_address_that_is_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Public when it is asked for first, private ever after: what a rebinding name server says.
    answers = ["93.184.215.14"]

    def resolve(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        address = answers.pop() if answers else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    socket.getaddrinfo("rebinding.example", 80)
    result = get(f"http://rebinding.example:{server.server_port}/image", GUARDED)
    assert isinstance(result, Exception)
    assert "not public" in describe(result)
    assert server.asked == []
    assert get(f"http://rebinding.example:{server.server_port}/image", OPEN) == png()


def test_a_redirect_is_followed_only_after_the_same_check(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For this test 127.0.0.1 is the internet, and 127.0.0.2 is not.
    monkeypatch.setattr(pipeline.web, "is_public", lambda address: address == "127.0.0.1")
    assert get(f"{server.url}/to?/image", GUARDED) == png()
    inside = f"http://127.0.0.2:{server.server_port}/image"
    server.hosts.clear()
    result = get(f"{server.url}/to?{inside}", GUARDED)
    assert isinstance(result, Exception)
    assert "not public" in describe(result)
    assert server.hosts == [f"127.0.0.1:{server.server_port}"]
    assert get(f"{server.url}/to?{inside}", OPEN) == png()


@pytest.mark.parametrize(
    "target, words",
    [
        ("file:///etc/passwd", "from http to file"),
        ("gopher://127.0.0.1:70/x", "from http to gopher"),
        ("ftp://host/x", "from http to ftp"),
        ("s3://bucket/x", "from http to s3"),
        ("http://user:secret@host/x", "credentials"),
        ("http://host:99999/x", "no URL"),
    ],
)
def test_a_redirect_elsewhere_than_the_web_is_refused(
    server: Server, target: str, words: str
) -> None:
    result = get(f"{server.url}/to?{target}")
    assert isinstance(result, RefusedError)
    assert words in str(result)
    assert "secret" not in str(result)


def test_a_redirect_never_gives_up_encryption() -> None:
    secure = yarl.URL("https://host/a")
    with pytest.raises(RefusedError, match="from https to http"):
        pipeline.web._next(secure, "http://host/a")
    assert str(pipeline.web._next(secure, "/b")) == "https://host/b"
    assert str(pipeline.web._next(yarl.URL("http://host/a"), "https://h/")) == "https://h/"


def test_redirects_end(server: Server) -> None:
    result = get(f"{server.url}/loop")
    assert isinstance(result, RefusedError)
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    "path, kind, transient",
    [
        ("status/404", FileNotFoundError, False),
        ("status/410", FileNotFoundError, False),
        ("status/403", PermissionError, False),
        ("status/401", PermissionError, False),
        ("status/418", RefusedError, False),
        ("status/204", RefusedError, False),
        ("status/408", ConnectionError, True),
        ("status/429", ConnectionError, True),
        ("status/500", ConnectionError, True),
        ("status/503", ConnectionError, True),
        ("short", Exception, True),
    ],
)
def test_answers_are_for_good_or_for_now(
    server: Server, path: str, kind: type[Exception], transient: bool
) -> None:
    result = get(f"{server.url}/{path}")
    assert isinstance(result, kind)
    assert is_transient(result) == transient


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_a_server_that_takes_too_long_is_left(server: Server, path: str) -> None:
    started = time.monotonic()
    result = get(f"{server.url}/{path}", WebAccess(True, timeout_s=0.3))
    assert time.monotonic() - started < 1.9
    assert isinstance(result, TimeoutError)
    assert is_transient(result)


def test_a_port_where_nobody_listens_may_be_back_later() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = get(f"http://127.0.0.1:{port}/x")
    assert isinstance(result, Exception)
    assert is_transient(result)


def test_a_body_without_end_is_cut_off_while_it_streams(server: Server) -> None:
    assert get(f"{server.url}/endless", max_bytes=10**5) == b"x" * (10**5 + 1)
    time.sleep(0.3)
    assert 10**5 < server.sent < 10**8


def test_a_packed_body_is_not_blown_up(server: Server) -> None:
    result = get(f"{server.url}/packed")
    assert isinstance(result, bytes)
    assert len(result) < 20_000
    assert gzip.decompress(result) == bytes(10**7)


def test_a_line_break_in_a_url_adds_no_header(server: Server) -> None:
    get(f"{server.url}/image/a\r\nX-Planted: 1\r\n\r\n.png")
    assert len(server.asked) <= 1
    assert all("X-Planted" not in headers for headers in server.headers)


def test_cookies_are_not_kept(server: Server) -> None:
    fetch([Request(f"{server.url}/to?/image")], FetchSettings(10**6, 1, OPEN))
    assert ["Cookie" in headers for headers in server.headers] == [False, False]


def test_proxies_of_the_environment_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert get(f"{server.url}/image") == png()


@pytest.mark.parametrize(
    "url, recorded, signature",
    [
        ("https://h/a.png?X-Amz-Signature=s&X-Amz-Expires=9", "https://h/a.png",
         "X-Amz-Signature=s&X-Amz-Expires=9"),
        ("https://h/a?id=7&sig=s%2F&sv=1#x", "https://h/a?id=7#x", "sig=s%2F&sv=1"),
        ("https://h/a?id=7", "https://h/a?id=7", None),
        ("https://h/a", "https://h/a", None),
        ("s3://b/a?token=1", "s3://b/a?token=1", None),
        ("/x/a?token=1", "/x/a?token=1", None),
    ],
    ids=["s3", "azure", "nothing signs", "no query", "a key of s3", "a path"],
)  # fmt: skip
def test_what_signs_a_url_is_no_part_of_its_identity(
    url: str, recorded: str, signature: str | None
) -> None:
    assert split_signature(url) == (recorded, signature)
    again = join_signature(recorded, signature)
    assert yarl.URL(again).query == yarl.URL(url).query


def settings(**changes: object) -> SourceSettings:
    return SourceSettings(allow_private_addresses=True, **changes)  # type: ignore[arg-type]


RULES = ListRules(OPEN)


def test_a_signed_list_entry_is_fetched_with_its_signature_and_recorded_without(
    server: Server, tmp_path: Path
) -> None:
    entry = f"{server.url}/image/a.png?id=1&X-Amz-Signature=planted"
    (tmp_path / "list.txt").write_text(entry)
    with pytest.raises(SourceError, match="carries a signature") as caught:
        take_inventory(entry, (), RULES)
    assert "planted" not in str(caught.value)
    images = take_inventory(str(tmp_path / "list.txt"), (), RULES).images
    assert images["uri"].to_pylist() == [f"{server.url}/image/a.png?id=1"]
    decoded = FetchDecode(32, 64, settings())(images)
    assert decoded["status"].to_pylist() == ["labelled"]
    assert "signature" not in decoded.column_names
    assert "planted" not in str(decoded.to_pylist())
    assert server.asked[-1] == "/image/a.png?id=1&X-Amz-Signature=planted"


def test_a_single_url_is_a_source(server: Server) -> None:
    images = take_inventory(f"{server.url}/image/a.png", (), RULES).images
    assert FetchDecode(32, 64, settings())(images)["status"].to_pylist() == ["labelled"]
    refused = FetchDecode(32, 64, SourceSettings())(images)["error"][0].as_py()
    assert (refused["stage"], refused["code"]) == ("fetch", "refused")
    assert "allow_private_addresses" in refused["message"]


def test_dead_web_servers_are_rows_not_the_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.fetching, "_BACKOFF_S", 0.0)
    entries = ",".join(f"{server.url}/status/50{digit}" for digit in range(3))
    images = take_inventory(f"{server.url}/list/of.txt?{entries}", (), RULES).images
    errors = FetchDecode(32, 64, settings(fetch_attempts=2))(images)["error"].to_pylist()
    assert [error["code"] for error in errors] == ["unavailable"] * 3
    assert len(server.asked) == 1 + 3 * 2


@pytest.mark.parametrize(
    "entry", ["/etc/hostname", "file:///etc/hostname", "a.png", "s3://b/a.png"]
)
def test_a_list_of_the_web_names_only_the_web(server: Server, entry: str) -> None:
    source = f"{server.url}/list/of.txt?{server.url}/image,{entry}"
    with pytest.raises(SourceError, match=r"line 2: .* trust_lists"):
        take_inventory(source, (), RULES)
    assert len(take_inventory(source, (), ListRules(OPEN, trusted=True)).images) == 2


def test_a_list_that_may_not_be_reached_is_a_wrong_setting(server: Server) -> None:
    with pytest.raises(SourceError, match="not public"):
        take_inventory(f"{server.url}/list/of.txt?x", (), ListRules(GUARDED))
    with pytest.raises(SourceError, match="does not exist"):
        take_inventory(f"{server.url}/status/404.txt", (), RULES)
    assert server.asked == ["/status/404.txt"]
