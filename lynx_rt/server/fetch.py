"""Fetches images for clients, from hosts that the operator has named, without becoming a way into the operator's own network.

- Only hosts of a list are asked, over http or https, at the scheme's port unless the list names another.
- A host's name is resolved once, all of its addresses must be public, and the connection is made to one of these: a name that resolves
  otherwise the next time changes nothing.
- A redirect is followed to such a host only, at most three times, and not from https to http.
- Size and time are bounded for all images of a request together, whatever the other side sends or does not send.
- Nothing of a client goes along: no cookies, no headers, and no proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httptools

from lynx_rt.errors import ValidationError, shown

_PORTS = {"http": 80, "https": 443}
_MAX_REDIRECTS = 3
_MAX_HEAD_BYTES = 64 << 10  # of an answer's headers
_CHUNK = 64 << 10
_CONNECTIONS = 8  # of a request at once
_ODD = re.compile(r"[\x00-\x20\x7f\\]")  # characters of which parsers of URLs have different opinions
_EMBEDDED = (ipaddress.ip_network("64:ff9b::/96"),)  # IPv6 addresses with an IPv4 address in their last bits (NAT64)
_HIDDEN = (  # what is_global says yes to, although it may lead back into a private network
    *map(ipaddress.ip_network, ("2002::/16", "2001::/32", "fec0::/10", "::/96", "64:ff9b:1::/48", "192.88.99.0/24")),
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network: not of this machine, a private network, a link, a group, or in disguise."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _EMBEDDED):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if any(ip.version == network.version and ip in network for network in _HIDDEN):
        return False
    odd = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not odd


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


@dataclass(frozen=True)
class _Place:
    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Fetcher:
    """Fetches images for one server.

    allowed_hosts: "example.com", "example.com:8080", "*.example.com" = all below it, "*" = all that are public; none = nothing is
    fetched.  timeout: seconds for all images of a request.  max_bytes: of all images of a request.  resolve, connect: for tests.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        timeout: float,
        max_bytes: int,
        resolve: Resolve = _resolve,
        connect: Connect = asyncio.open_connection,
    ) -> None:
        self._allowed = tuple(host.lower().rstrip(".") for host in allowed_hosts)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._connect = connect
        self._tls = ssl.create_default_context() if allowed_hosts else None

    async def fetch_all(self, urls: Sequence[tuple[str, str]]) -> list[bytes]:
        """Returns what is at the URLs. urls: (URL, its name in errors).  Raises ValidationError of the field "messages"."""
        budget, room = _Budget(self._max_bytes), asyncio.Semaphore(_CONNECTIONS)
        tasks = [asyncio.ensure_future(self._fetch(url, name, budget, room)) for url, name in urls]
        try:
            return await asyncio.wait_for(asyncio.gather(*tasks), self._timeout)
        except asyncio.TimeoutError:
            late = next((name for task, (_, name) in zip(tasks, urls, strict=True) if not _is_done(task)), urls[0][1])
            raise _fault(late, f"the image did not come within {self._timeout:g} s") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, url: str, name: str, budget: _Budget, room: asyncio.Semaphore) -> bytes:
        place = self._place(url, name)
        for _ in range(_MAX_REDIRECTS + 1):
            async with room:
                answer = await self._get(place, name, budget)
            if answer.location is None:
                return answer.body
            before, place = place, self._place(_joined(place, answer.location), name)
            if (before.scheme, place.scheme) == ("https", "http"):
                raise _fault(name, "a redirect leads from https to http")
        raise _fault(name, f"more than {_MAX_REDIRECTS} redirects")

    def _place(self, url: str, name: str) -> _Place:
        """Returns where a URL leads. Raises ValidationError for a URL that is odd, or of a host that is not allowed."""
        try:
            if _ODD.search(url):
                raise ValueError("a character that a URL cannot have")
            parts = urllib.parse.urlsplit(url)
            scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
            if scheme not in _PORTS or not host or "@" in parts.netloc:
                raise ValueError("expected http://HOST/PATH or https://HOST/PATH, without a user")
            host = host if ":" in host else host.encode("idna").decode("ascii")
            port = parts.port if parts.port is not None else _PORTS[scheme]
        except ValueError as error:  # UnicodeError of odd names, too
            raise _fault(name, f"{shown(url[:100])} is no URL of an image: {error}") from None
        if not any(_matches(entry, host, port, port == _PORTS[scheme]) for entry in self._allowed):
            raise _fault(
                name, f"images of {shown(place_name(host, port, scheme))} are not fetched (--allowed-media-domains)"
            )
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
            "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
        )
        return _Place(scheme, host, port, target)

    async def _get(self, place: _Place, name: str, budget: _Budget) -> _Answer:
        try:
            addresses = await self._resolve(place.host, place.port)
        except OSError:
            raise _fault(name, f"the host {place.host} is not known") from None
        if not addresses or not all(map(is_public, addresses)):
            raise _fault(name, f"the host {place.host} has no public address")
        reader, writer = await self._connected(place, addresses, name)
        answer = _Answer(name, budget)
        try:
            request = f"GET {place.target} HTTP/1.1\r\nHost: {place.host_header}\r\nUser-Agent: lynx_rt\r\nAccept: image/*\r\n"
            writer.write(f"{request}Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii"))
            while not answer.complete:
                data = await reader.read(_CHUNK)
                if not data:
                    answer.on_end()
                    break
                answer.feed(data)
            return answer
        except (OSError, httptools.HttpParserError) as error:
            if isinstance(error.__context__, ValidationError):  # raised in a callback of the parser
                raise error.__context__ from None
            raise _fault(name, f"the answer of {place.host} cannot be read: {type(error).__name__}") from None
        finally:
            with contextlib.suppress(Exception):
                writer.transport.abort()

    async def _connected(
        self, place: _Place, addresses: Sequence[str], name: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = {"ssl": self._tls, "server_hostname": place.host} if place.scheme == "https" else {}
        reason = ""
        for address in addresses:
            try:
                return await self._connect(address, place.port, **tls)
            except OSError as error:  # SSLError is one
                reason = "its certificate is not valid" if isinstance(error, ssl.SSLError) else "no connection"
        raise _fault(name, f"the host {place.host} cannot be reached: {reason}")


class _Budget:
    """Bytes that the images of a request may still have."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, count: int, name: str) -> None:
        self.check(count, name)
        self._left -= count

    def check(self, count: int, name: str) -> None:
        if count > self._left:
            raise _fault(name, f"the images of a request may have {self._limit} bytes (--max-media-bytes)")


class _Answer:
    """Reads an answer; its methods with `on_` are httptools' callbacks."""

    def __init__(self, name: str, budget: _Budget) -> None:
        self.location: str | None = None  # of a redirect
        self.complete = False
        self._name = name
        self._budget = budget
        self._pieces: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._has_head = False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> None:
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES + _CHUNK:
                raise _fault(self._name, "the headers of the answer are too long")
        self._parser.feed_data(data)

    def on_end(self) -> None:
        """The connection has ended, which is the end of an answer that does not say its length."""
        says_length = "content-length" in self._headers or "transfer-encoding" in self._headers
        if not self._has_head or says_length:
            raise _fault(self._name, "the answer was cut off")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.complete:
            return
        if status < 200:  # the answer itself follows
            self._headers.clear()
            return
        self._has_head = True
        if status in (301, 302, 303, 307, 308) and "location" in self._headers:
            self.location, self.complete = self._headers["location"], True
        elif status != 200:
            raise _fault(self._name, f"the image's host answered {status}")
        elif self._headers.get("content-encoding", "identity").lower() != "identity":
            raise _fault(self._name, "the answer is compressed, which was not asked for")
        length = self._headers.get("content-length", "")
        if length.isdigit() and not self.complete:
            self._budget.check(int(length[:19]), self._name)  # refused before it comes

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self._budget.take(len(data), self._name)
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = self.complete or self._has_head


def place_name(host: str, port: int, scheme: str) -> str:
    """Returns a host as --allowed-media-domains names it."""
    return host if port == _PORTS[scheme] else f"{host}:{port}"


def _matches(entry: str, host: str, port: int, usual_port: bool) -> bool:
    if entry == host or (entry.startswith("*.") and host.endswith(entry[1:])) or entry == "*":
        return usual_port
    return entry == f"{host}:{port}"


def _joined(place: _Place, location: str) -> str:
    return urllib.parse.urljoin(f"{place.scheme}://{place.host_header}{place.target}", location)


def _is_done(task: asyncio.Future[bytes]) -> bool:
    return task.done() and not task.cancelled()


def _fault(name: str, text: str) -> ValidationError:
    return ValidationError(f"{name}: {text}", "messages")
