"""The page for browsers at /: a chat, and what expert selection does meanwhile. Its files are in static/."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from lynx_rt._C import build_info
from lynx_rt.server.errors import from_status
from lynx_rt.server.state import state_of

router = APIRouter(include_in_schema=False)
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from other places, nothing inline but the images of messages, and no text that becomes HTML.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-cache",  # a browser asks whether its copy is still right
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow",
}


class _File:
    """One file of the page, read once."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'}
        self._type = _TYPES[path.suffix]

    def answer(self, request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if self._headers["ETag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers, media_type=self._type)


_FILES = {path.name: _File(path) for path in (Path(__file__).parent / "static").iterdir() if path.suffix in _TYPES}


def is_page(path: str, accept: str) -> bool:
    """Whether a request is for a file of the page, which needs no key: it is the same for all. accept: its header."""
    return (path == "/" and "text/html" in accept) or path.removeprefix("/page/") in _FILES or path == "/robots.txt"


@router.api_route("/", methods=["GET", "HEAD"])
async def root(request: Request) -> Response:
    """The page for browsers; for clients, which may ask before they send anything else, what answers here."""
    if state_of(request).settings.page and is_page("/", request.headers.get("accept", "")):
        answer = _FILES["index.html"].answer(request)
    else:
        answer = JSONResponse({"server": "lynx_rt", "version": build_info()["version"], "docs": "/docs"})
    answer.headers["Vary"] = "Accept"
    return answer


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def file(name: str, request: Request) -> Response:
    """A file that the page loads."""
    found = _FILES.get(name) if state_of(request).settings.page else None
    return JSONResponse(from_status(404).body(), 404) if found is None else found.answer(request)


@router.api_route("/robots.txt", methods=["GET", "HEAD"])
async def robots() -> Response:
    """Search engines have nothing to find here."""
    return PlainTextResponse("User-agent: *\nDisallow: /\n")
