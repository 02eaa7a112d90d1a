"""Images that the server fetches: from allowed hosts with public addresses alone, and within their time and size.

No name is resolved and no other host is asked: both are faked, and the answers come from a server of the test.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_rt.errors import ValidationError
from lynx_rt.server.fetch import Fetcher, is_public

PUBLIC = "93.184.215.14"
Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"


def plain(data: bytes) -> Answer:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


class World:
    """A network of one server, which answers for every host; it keeps what was asked for."""

    def __init__(self, answer: Answer, addresses: dict[str, list[str]] | None = None) -> None:
        self.answer = answer
        self.addresses = addresses or {}
        self.asked: list[tuple[str, int]] = []  # addresses that were connected to
        self.heads: list[str] = []
        self.resolved: list[str] = []
        self.open = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        if host == "unknown.example":
            raise OSError("no such host")
        return self.addresses.get(host, [PUBLIC])

    async def connect(self, address: str, port: int, **tls: Any) -> Any:
        self.asked.append((address, port))
        return await asyncio.open_connection("127.0.0.1", self.port, **tls)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            await self.answer(head, reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1

    def fetch(
        self,
        *urls: str,
        hosts: tuple[str, ...] = ("a.example", "b.example"),
        timeout: float = 5.0,
        max_bytes: int = 1000,
        tls: Any = None,
        trust: str | None = None,
    ) -> list[bytes]:
        async def run() -> list[bytes]:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
            self.port = server.sockets[0].getsockname()[1]
            fetcher = Fetcher(hosts, timeout, max_bytes, self.resolve, self.connect)
            if trust is not None:
                fetcher._tls.load_verify_locations(trust)  # type: ignore[union-attr]
            try:
                return await fetcher.fetch_all([(url, f"image {place}") for place, url in enumerate(urls)])
            finally:
                server.close()
                end = time.monotonic() + 5
                while self.open and time.monotonic() < end:  # each connection has been closed
                    await asyncio.sleep(0.01)
                assert not self.open

        return asyncio.run(run())

    def refuse(self, url: str, fault: str, **options: Any) -> None:
        with pytest.raises(ValidationError, match=fault) as caught:
            self.fetch(url, **options)
        assert caught.value.field == "messages" and str(caught.value).startswith("image 0: ")


def length(data: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(data) + data


# --- answers


@pytest.mark.parametrize(
    "answer",
    [
        length(b"picture"),
        OK + b"\r\npicture",  # the end of the connection ends it
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\npic\r\n4\r\nture\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\npicture",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + length(b"picture"),
        length(b"picture") + b"HTTP/1.1 404 Not Found\r\n\r\nmore than was asked for",
        OK + b"content-encoding: identity\r\nContent-Length: 7\r\n\r\npicture",
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_answers(answer: bytes, in_pieces: bool) -> None:
    async def slowly(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for place in range(len(answer)):
            writer.write(answer[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0)

    world = World(slowly if in_pieces else plain(answer))
    assert world.fetch("http://a.example/dir/p.png?x=1&y=%20") == [b"picture"]
    assert world.asked == [(PUBLIC, 80)] and world.resolved == ["a.example"]
    [head] = world.heads
    assert head.startswith("GET /dir/p.png?x=1&y=%20 HTTP/1.1\r\nHost: a.example\r\n")
    assert not {"cookie", "authorization", "x-forwarded-for"} & {
        line.partition(":")[0].lower() for line in head.split("\r\n")
    }


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx", "answered 404"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "answered 302"),  # without a place
        (OK + b"Content-Length: 9\r\n\r\npicture", "was cut off"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\npic", "was cut off"),
        (OK + b"Content-Le", "was cut off"),
        (b"", "was cut off"),
        (b"SSH-2.0-OpenSSH_9\r\n", "cannot be read"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz", "compressed"),
        (OK + b"Content-Length: 1001\r\n\r\n", r"may have 1000 bytes \(--max-media-bytes\)"),
        (OK + b"Content-Length: 99999999999999999999999\r\n\r\n", "may have 1000 bytes|cannot be read"),
        (OK + b"\r\n" + bytes(1001), "may have 1000 bytes"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"64\r\n" + bytes(100) + b"\r\n" + b"3e8\r\n" + bytes(1000),
            "1000 bytes",
        ),
        (OK + b"X: " + b"y" * 300_000, "headers of the answer are too long|cannot be read"),
        (OK + b"".join(b"X%d: y\r\n" % i for i in range(40_000)), "headers of the answer are too long|cannot be read"),
    ],
)
def test_answers_that_are_no_image(answer: bytes, fault: str) -> None:
    World(plain(answer)).refuse("http://a.example/p.png", fault)


def test_random_answers_end_with_an_error() -> None:
    source = random.Random(11)
    good = length(b"picture")
    for _ in range(60):
        data = bytearray(good)
        for _ in range(source.randint(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            [found] = World(plain(bytes(data))).fetch("http://a.example/p.png", timeout=5)
            assert len(found) <= 1000
        except ValidationError:
            pass


def test_several_images_share_size_and_time() -> None:
    world = World(plain(length(bytes(400))))
    assert world.fetch("http://a.example/1", "http://b.example/2") == [bytes(400)] * 2
    with pytest.raises(ValidationError, match=r"image [012]: the images of a request may have 1000 bytes"):
        world.fetch(*["http://a.example/p"] * 3)
    start = time.monotonic()
    assert len(world.fetch(*[f"http://a.example/{i}" for i in range(40)], max_bytes=16000)) == 40
    assert time.monotonic() - start < 5


# --- hosts that dawdle


async def nothing(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side goes


def drip(start: bytes, piece: bytes) -> Answer:
    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not reader.at_eof():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        nothing,
        drip(b"", b"\r\n"),  # empty lines before an answer
        drip(OK, b"X: y\r\n"),  # headers without an end
        drip(OK + b"Content-Length: 900\r\n\r\n", b"x"),
        drip(OK + b"\r\n", b"x"),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
)
def test_slow_answers_end_in_time(answer: Answer) -> None:
    start = time.monotonic()
    World(answer).refuse("http://a.example/p.png", r"image did not come within 0\.4 s", timeout=0.4)
    assert time.monotonic() - start < 3


def test_an_endless_body_is_cut() -> None:
    async def endless(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    World(endless).refuse("http://a.example/p.png", "may have 1000000 bytes", max_bytes=1_000_000)


def test_slow_names_and_connections_end_in_time() -> None:
    for name in ("resolve", "connect"):
        world = World(plain(length(b"x")))

        async def never(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(60)

        setattr(world, name, never)
        world.refuse("http://a.example/p.png", r"did not come within 0\.2 s", timeout=0.2)


# --- where they may lead

PRIVATE = [
    *(
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
    ),
    *(
        "100.64.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
    ),
    *(
        "255.255.255.255",
        "192.88.99.1",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
    ),
    *(
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
    ),
    *(
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "100::1",
        "no address",
        "",
    ),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        world = World(plain(length(b"secret")), {"a.example": addresses})
        world.refuse("http://a.example/p.png", "the host a.example has no public address")
        assert not world.asked


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    world = World(plain(length(b"picture")), {"a.example": [address]})
    assert world.fetch("http://a.example/p.png") == [b"picture"] and world.asked == [(address, 80)]


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_every_disguise(address: ipaddress.IPv4Address) -> None:
    public = is_public(str(address))
    assert is_public(f"::ffff:{address}") == public
    assert is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) + int(address)))) == public
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) + (int(address) << 80))))
    if public:
        assert address.is_global and not address.is_multicast


def test_a_name_is_resolved_once() -> None:
    """A name that is private the second time is not asked for a second time."""
    world = World(plain(length(b"picture")))
    replies = [[PUBLIC], ["127.0.0.1"]]

    async def changing(host: str, port: int) -> list[str]:
        return replies.pop(0)

    world.resolve = changing  # type: ignore[method-assign]
    assert world.fetch("http://a.example/p.png") == [b"picture"]
    assert world.asked == [(PUBLIC, 80)] and len(replies) == 1


def test_the_next_address_is_tried() -> None:
    world = World(plain(length(b"picture")), {"a.example": ["2606:4700::1", PUBLIC]})
    real = world.connect

    async def without_ipv6(address: str, port: int, **tls: Any) -> Any:
        if ":" in address:
            raise OSError("no route")
        return await real(address, port, **tls)

    world.connect = without_ipv6  # type: ignore[method-assign]
    assert world.fetch("http://a.example/p.png") == [b"picture"]
    world.addresses = {"a.example": ["2606:4700::1"]}
    world.refuse("http://a.example/p.png", "cannot be reached: no connection")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://c.example/p.png", "images of 'c.example' are not fetched"),
        ("http://a.example.c.example/p.png", "are not fetched"),
        ("http://ba.example/p.png", "are not fetched"),
        ("http://a.example:81/p.png", "images of 'a.example:81' are not fetched"),
        ("https://a.example:80/p.png", "are not fetched"),
        ("http://user@a.example/p.png", "without a user"),
        ("http://a.example@c.example/p.png", "without a user"),
        ("http://c.example#@a.example/", "are not fetched"),
        ("http://c.example\\@a.example/", "character that a URL cannot have"),
        ("http://a.example/p.png\r\nHost: c.example", "character that a URL cannot have"),
        ("http://a.example /p.png", "character that a URL cannot have"),
        ("http://\ta.example/", "character that a URL cannot have"),
        ("http:///p.png", "is no URL of an image"),
        ("http:a.example", "is no URL of an image"),
        ("http://[::1", "is no URL of an image"),
        ("http://a.example:port/", "is no URL of an image"),
        ("http://a.example:99999/", "is no URL of an image"),
        ("http://" + "a" * 70 + ".example/", "is no URL of an image"),
        ("ftp://a.example/p.png", "expected http://HOST/PATH"),
        ("gopher://a.example/", "expected http://HOST/PATH"),
        ("file:///etc/passwd", "expected http://HOST/PATH"),
        ("http://127.0.0.1/", "'127.0.0.1' are not fetched"),
        ("http://unknown.example/", "are not fetched"),
    ],
)
def test_urls_that_are_not_asked_for(url: str, fault: str) -> None:
    world = World(plain(length(b"secret")))
    world.refuse(url, fault)
    assert not world.resolved and not world.asked


def test_hosts_of_the_list() -> None:
    world = World(plain(length(b"picture")))
    for url, hosts in (
        ("http://A.Example./p", ("a.example",)),
        ("http://x.y.example/p", ("*.example",)),
        ("http://any.where/p", ("*",)),
        ("http://a.example:8080/p", ("a.example:8080",)),
        ("http://b\u00fccher.example/p\u00e4", ("xn--bcher-kva.example",)),
        ("http://93.184.215.14/p", ("93.184.215.14",)),
    ):
        assert world.fetch(url, hosts=hosts) == [b"picture"]
    assert "Host: a.example:8080\r\n" in world.heads[3] and world.asked[3] == (PUBLIC, 8080)
    assert world.heads[4].startswith("GET /p%C3%A4 HTTP")
    world.refuse("http://example/p", "are not fetched", hosts=("*.example",))
    world.refuse("http://a.example:8080/p", "are not fetched", hosts=("*",))
    world.refuse("http://unknown.example/p", "unknown.example is not known", hosts=("*",))
    for literal in ("127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        world.addresses[literal.strip("[]")] = ["127.0.0.1"]  # as a resolver reads them
        world.refuse(f"http://{literal}/p", "has no public address", hosts=("*",))


# --- redirects


def redirects(places: dict[str, str]) -> Answer:
    """path -> where it leads; other paths are pictures."""

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = head.split()[1].decode()
        if path in places:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 4\r\n\r\nmore" % places[path].encode())
        else:
            writer.write(length(path.encode()))

    return answer


@pytest.mark.parametrize(
    ("location", "fault"),
    [
        ("http://c.example/secret", "images of 'c.example' are not fetched"),
        ("//c.example/secret", "images of 'c.example' are not fetched"),
        ("http://127.0.0.1/secret", "are not fetched"),
        ("http://b.example/secret", "the host b.example has no public address"),
        ("http://a.example:22/", "images of 'a.example:22' are not fetched"),
        ("file:///etc/passwd", "expected http://HOST/PATH"),
        ("/start", "more than 3 redirects"),
        ("http://user:pw@a.example/", "without a user"),
    ],
)
def test_redirects_that_are_not_followed(location: str, fault: str) -> None:
    world = World(redirects({"/start": location}), {"b.example": ["10.0.0.7"]})
    world.refuse("http://a.example/start", fault)
    assert {address for address, _ in world.asked} == {PUBLIC}
    assert not any("secret" in head for head in world.heads)


def test_redirects_that_are_followed() -> None:
    places = {"/1": "/2", "/2": "http://b.example/3?x=y", "/3?x=y": "end"}
    world = World(redirects(places))
    assert world.fetch("http://a.example/1") == [b"/end"]
    assert [head.split("\r\n")[1] for head in world.heads] == [f"Host: {host}.example" for host in "aabb"]
    assert world.resolved == [f"{host}.example" for host in "aabb"]  # each is checked anew


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate for a.example, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "3650",
    ]
    more = ["-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example", "-out", files[0], "-keyout", files[1]]
    try:
        subprocess.run([*command, *more], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl")
    return files


def test_tls(certificate: tuple[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    options: dict[str, Any] = {"tls": context, "trust": certificate[0]}
    world = World(plain(length(b"picture")))
    assert world.fetch("https://a.example/p.png", **options) == [b"picture"]
    assert world.asked == [(PUBLIC, 443)]
    world.refuse("https://b.example/p.png", "its certificate is not valid", **options)  # another host's
    world.refuse("https://a.example/p.png", "its certificate is not valid", tls=context)  # nobody vouches for it
    down = World(redirects({"/1": "http://a.example/2"}))
    down.refuse("https://a.example/1", "leads from https to http", **options)
    assert len(down.heads) == 1
