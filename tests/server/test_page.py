"""The page's files over HTTP. test_page_in_browser.py uses them."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import pytest
from live_server import LiveServer, serving

from lynx_rt.server.page import is_page

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STATIC = resources.files("lynx_rt.server") / "static"
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NAMES = sorted(file.name for file in STATIC.iterdir() if file.name.rpartition(".")[2] in TYPES)


def policy(answer: httpx.Response) -> dict[str, str]:
    directives = answer.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


def test_the_page(server: LiveServer) -> None:
    answer = server.client.get("/", headers=HTML)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == (STATIC / "index.html").read_text() and answer.headers["vary"] == "Accept"
    assert answer.headers["x-content-type-options"] == "nosniff" and "noindex" in answer.headers["x-robots-tag"]
    directives = policy(answer)
    assert directives["default-src"] == "'none'" and directives["frame-ancestors"] == "'none'"
    assert {directives[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert directives["img-src"] == "'self' data:"  # images of messages
    assert server.client.head("/", headers=HTML).status_code == 200


@pytest.mark.parametrize("name", NAMES)
def test_files(server: LiveServer, name: str) -> None:
    answer = server.client.get(f"/page/{name}")
    assert answer.status_code == 200 and answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert answer.headers["cache-control"] == "no-cache" and policy(answer)["default-src"] == "'none'"
    again = server.client.get(f"/page/{name}", headers={"If-None-Match": f'"x", W/{answer.headers["etag"]}'})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == answer.headers["etag"]


def test_what_the_files_name_exists_and_nothing_is_inline() -> None:
    html = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    for name in NAMES:
        named |= set(re.findall(r'from "\./([^"]+)"', (STATIC / name).read_text()))
    assert named | {"index.html"} == set(NAMES)
    assert re.findall(r"<script[^>]*>", html) == ['<script type="module" src="page/page.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?:", html)
    for name in NAMES:
        text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


def test_ids_are_those_of_the_page() -> None:
    """Every element that a script asks for is there, and labels name fields."""
    html = (STATIC / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    scripts = "".join((STATIC / name).read_text() for name in NAMES if name.endswith(".js"))
    assert set(re.findall(r'\$\("([^"]+)"\)', scripts)) <= set(ids)
    assert set(re.findall(r'\b(?:for|aria-controls|aria-labelledby|aria-describedby|list)="([^"]+)"', html)) <= set(ids)


def test_clients_get_json(server: LiveServer) -> None:
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = server.client.get("/", headers=headers)
        assert answer.json()["server"] == "lynx_rt" and answer.headers["vary"] == "Accept"


def test_unknown_files(server: LiveServer) -> None:
    for name in ("nothing.js", "..%2Fpage.py", "%2e%2e%2fpage.py", ""):
        assert server.client.get(f"/page/{name}").status_code == 404
    assert server.client.post("/page/page.js").status_code == 405


def test_robots(server: LiveServer) -> None:
    assert server.client.get("/robots.txt").text == "User-agent: *\nDisallow: /\n"


def test_the_page_needs_no_key_and_all_else_does() -> None:
    with serving("--api-key", "a") as server:
        assert server.client.get("/", headers=HTML).status_code == 200
        assert server.client.get("/page/page.js").status_code == 200
        for path in ("/", "/page/nothing", "/v1/models", "/v1/lynx/experts", "/docs", "/page/../v1/models"):
            assert server.client.get(path).status_code == 401, path
        assert server.client.get("/v1/lynx/experts", headers={"Authorization": "Bearer a"}).status_code == 200


def test_no_page() -> None:
    with serving("--no-page", "--api-key", "a") as server:
        for path in ("/", "/page/page.js"):
            assert server.client.get(path, headers=HTML).status_code == 401
            with_key = server.client.get(path, headers={**HTML, "x-api-key": "a"})
            assert with_key.status_code == (200 if path == "/" else 404)
            assert with_key.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "accept", "expected"),
    [("/", "text/html", True), ("/", "*/*", False), ("/page/page.css", "", True), ("/page/", "text/html", False)],
)
def test_what_is_of_the_page(path: str, accept: str, expected: bool) -> None:
    assert is_page(path, accept) == expected
