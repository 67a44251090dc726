"""A proxy before an S3 server that fails some requests the way stores and networks do.

Faults are drawn from a seed per request. It also says when a chosen request comes by, while it
holds it, so that a process can be killed at exactly that point.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

# What a client must have given up before: see READ_TIMEOUT_S of the drivers.
STALL_S: Final = 4.0
SLOW_S: Final = 0.3

FAULTS: Final = (
    "error",  # 500 and nothing was done
    "slow_down",  # 503 SlowDown and nothing was done
    "reset",  # the connection breaks and nothing was done
    "error_after",  # 500, and yet the request was carried out
    "reset_after",  # the connection breaks, and the request was carried out
    "stall",  # no answer in the client's time, and the request was carried out
    "truncated",  # the answer breaks off half-way
    "slow",  # the answer trickles
)
_CODES: Final = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "error_after": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}
# Of one connection, not of the request (RFC 9110 7.6.1); lengths are set anew.
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
)


@dataclass(frozen=True)
class Request:
    """What came by: `key` is bucket/key, without the query."""

    method: str
    key: str
    query: str


# Called from a thread of its own, before and after a request is carried out, while it is held.
Watcher = Callable[[Request, bool], None]


@dataclass
class FaultyStore:
    """The proxy's controls, which may be changed at any time."""

    upstream: str
    endpoint: str = ""
    rate: float = 0.0  # share of the requests that fail
    faults: tuple[str, ...] = FAULTS
    rng: random.Random = field(default_factory=random.Random)
    watcher: Watcher | None = None
    injected: Counter[str] = field(default_factory=Counter)

    def heal(self) -> None:
        """Let all requests pass."""
        self.rate = 0.0
        self.watcher = None

    def draw(self, request: Request) -> str | None:
        """Return the fault of a request, if it has one."""
        if self.rng.random() >= self.rate:
            return None
        fault = self.rng.choice(self.faults)
        self.injected[f"{fault} {request.method}"] += 1
        return fault


@contextmanager
def faulty_store(upstream: str) -> Iterator[FaultyStore]:
    """Run a proxy before `upstream` in a thread, on a free port of this machine."""
    store = FaultyStore(upstream)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faulty-store", daemon=True)
    thread.start()
    proxy = _Proxy(store)
    store.endpoint = asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(30)
    try:
        yield store
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class _Proxy:
    def __init__(self, store: FaultyStore) -> None:
        self._store = store

    async def start(self) -> str:
        self._session = ClientSession(
            timeout=ClientTimeout(total=60), auto_decompress=False, cookie_jar=None
        )
        server = web.Server(self._answer)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, incoming: web.BaseRequest) -> web.StreamResponse:
        path, _, query = incoming.raw_path.partition("?")
        request = Request(incoming.method, unquote(path).lstrip("/"), query)
        if incoming.headers.get("Expect", "").lower() == "100-continue" and incoming.transport:
            incoming.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await incoming.read()
        fault = self._store.draw(request)
        if fault in ("error", "slow_down"):
            return _refuse(fault, request)
        if fault == "reset":
            return _reset(incoming)
        await self._show(request, carried_out=False)
        status, headers, data = await self._pass_on(incoming, body)
        await self._show(request, carried_out=True)
        if fault == "reset_after":
            return _reset(incoming)
        if fault == "error_after":
            return _refuse(fault, request)
        if fault == "stall":
            await asyncio.sleep(STALL_S)
            return _reset(incoming)
        if fault in ("truncated", "slow") and incoming.method == "GET":
            return await _trickle(incoming, status, headers, data, whole=fault == "slow")
        return await _send(incoming, status, headers, data)

    async def _show(self, request: Request, *, carried_out: bool) -> None:
        watcher = self._store.watcher
        if watcher is not None:
            await asyncio.get_running_loop().run_in_executor(None, watcher, request, carried_out)

    async def _pass_on(
        self, incoming: web.BaseRequest, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {
            name: value for name, value in incoming.headers.items() if not _is_hop_by_hop(name)
        }
        url = URL(self._store.upstream + incoming.raw_path, encoded=True)
        async with self._session.request(
            incoming.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            data = await answer.read()
            kept = {
                name: value
                for name, value in answer.headers.items()
                if not _is_hop_by_hop(name)
                or (incoming.method == "HEAD" and name.lower() == "content-length")
            }
            return answer.status, kept, data


def _is_hop_by_hop(name: str) -> bool:
    return name.lower() in _HOP_BY_HOP


def _refuse(fault: str, request: Request) -> web.Response:
    status, code, message = _CODES[fault]
    text = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>"
        f"<Message>{message}</Message><Resource>/{request.key}</Resource></Error>"
    )
    body = None if request.method == "HEAD" else text.encode()
    return web.Response(status=status, body=body, content_type="application/xml")


def _reset(incoming: web.BaseRequest) -> web.StreamResponse:
    """Break the connection with a TCP reset and answer nothing."""
    transport = incoming.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    raise asyncio.CancelledError


async def _send(
    incoming: web.BaseRequest, status: int, headers: dict[str, str], data: bytes
) -> web.StreamResponse:
    """Send an answer whole; that to a HEAD keeps the length of what a GET would bring."""
    answer = web.StreamResponse(status=status, headers=headers)
    if incoming.method != "HEAD":
        answer.content_length = len(data)
    with suppress(ConnectionResetError):  # the client waited no longer, or was killed
        await answer.prepare(incoming)
        if data:
            await answer.write(data)
        await answer.write_eof()
    return answer


async def _trickle(
    incoming: web.BaseRequest, status: int, headers: dict[str, str], data: bytes, *, whole: bool
) -> web.StreamResponse:
    """Send an answer in pieces, and break off after half of them unless `whole`."""
    answer = web.StreamResponse(status=status, headers=headers)
    answer.content_length = len(data)
    half = len(data) // 2
    with suppress(ConnectionResetError):
        await answer.prepare(incoming)
        await answer.write(data[:half])
        await asyncio.sleep(SLOW_S)
        if whole:
            await answer.write(data[half:])
            await answer.write_eof()
        elif incoming.transport is not None:
            incoming.transport.close()
    return answer
