"""A fake Hugging Face Hub on loopback, with the routes that huggingface_hub uses to list and download a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """models: name -> file -> bytes.  refused: name -> (status, X-Error-Code) of every answer about it."""

    models: dict[str, dict[str, bytes]]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    url: str = ""
    served: list[str] = field(default_factory=list)  # files that were downloaded

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if name in self.refused:
            status, code = self.refused[name]
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b""
        files = self.models.get(name)
        if files is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""  # the Hub's answer to a client that is not logged in
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if api and rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if api:
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        content = files.get("/".join(rest[2:])) if rest[:1] == ["resolve"] else None
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, content


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                if "/resolve/" in self.path:
                    hub.served.append(self.path.rsplit("/", 1)[1])
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
