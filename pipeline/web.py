"""Images on web servers that nobody vouches for: where they may lead, how much they may send."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

import aiohttp
import yarl
from aiohttp.connector import AddrInfoType
from fsspec.asyn import AsyncFileSystem

from schemas.config import RemoteSettings

WEB_SCHEMES: Final = ("http", "https")
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES: Final = 2**16
_CONNECTIONS: Final = 16
# What Python takes for public and is not: protocol assignments (Oracle's metadata service is
# among them), Azure's metadata and DNS service, IPv4-compatible and local translated addresses.
_CLOSED: Final = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32", "::/96", "64:ff9b:1::/48"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RefusedError(OSError):
    """A URL leads where it may not lead, or its server answers what is no use to ask for again."""


@dataclass(frozen=True)
class WebAccess:
    """Where web servers may be, and how long one answer may take."""

    allow_private: bool
    timeout_s: float

    @classmethod
    def of(cls, settings: RemoteSettings) -> Self:
        """Return the rules that the settings make."""
        return cls(settings.allow_private_addresses, settings.web_timeout_seconds)


@cache
def web_store(access: WebAccess) -> "WebStore":
    """Return the file system of http(s) URLs under these rules."""
    return WebStore(access)


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet, and no cloud's metadata service."""
    ip = _embedded(ipaddress.ip_address(address))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _CLOSED)


def _embedded(ip: _Address) -> _Address:
    """Return the IPv4 address to which an IPv6 address is translated, or the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    teredo = ip.teredo[1] if ip.teredo else None
    return ip.ipv4_mapped or ip.sixtofour or teredo or ip


class WebStore(AsyncFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Reads whole files by GET; a path is the URL. There is no listing of the web."""

    protocol = WEB_SCHEMES
    cachable = False  # `web_store` keeps one per process

    def __init__(self, access: WebAccess) -> None:
        super().__init__()
        self._access = access

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path  # http and https are different places

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return the first `end` bytes behind a URL, all if None; `start` is the beginning."""
        async with self._session() as session:
            return await self._read(session, path, end)

    async def _cat_ranges(
        self, paths: Sequence[str], starts: Any, ends: Sequence[int], **_: Any
    ) -> list[bytes | BaseException]:
        """Return the first bytes behind each URL, or the exception in its place."""
        async with self._session() as session:
            reads = [self._read(session, *pair) for pair in zip(paths, ends, strict=True)]
            return list(await asyncio.gather(*reads, return_exceptions=True))

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # Every address is checked where it is connected to, so that neither the spelling of a
            # host nor a name that resolves anew can lead past the check.
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=self._access.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed answers could grow without bound here; images are compressed already.
            headers={"Accept-Encoding": "identity", "User-Agent": "segmill"},
            auto_decompress=False,
        )

    def _socket(self, info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, destination = info
        if not self._access.allow_private and not is_public(str(destination[0])):
            raise RefusedError("the host's address is not public (allow_private_addresses)")
        return socket.socket(family, kind, protocol)

    async def _read(self, session: aiohttp.ClientSession, path: str, most: int | None) -> bytes:
        url = yarl.URL(path)
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    _check(response)
                    return await _body(response, most)
                url = _next(url, response.headers.get("Location", ""))
        raise RefusedError(f"it redirects more than {_MAX_REDIRECTS} times")


def _next(url: yarl.URL, location: str) -> yarl.URL:
    """Return where a redirect leads; raises RefusedError unless it stays with http or https."""
    try:
        target = url.join(yarl.URL(location))
    except ValueError:
        raise RefusedError("it redirects to what is no URL") from None
    if target.scheme not in WEB_SCHEMES or (url.scheme == "https" and target.scheme != "https"):
        raise RefusedError(f"it redirects from {url.scheme} to {target.scheme or 'nowhere'}")
    if target.user is not None or target.password is not None:
        raise RefusedError("it redirects to a URL with credentials")
    return target


def _check(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in (404, 410):
        raise FileNotFoundError(f"the server answers {status}")
    if status in (401, 403, 407):
        raise PermissionError(f"the server answers {status}")
    if status in (408, 425, 429) or status >= 500:
        raise ConnectionError(f"the server answers {status}")
    if status != 200:
        raise RefusedError(f"the server answers {status}")


async def _body(response: aiohttp.ClientResponse, most: int | None) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(_CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if most is not None and size >= most:
            break
    return b"".join(parts)[:most]
