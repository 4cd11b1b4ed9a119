"""A small hub on this machine: as much of the Hugging Face hub's API as downloading from it takes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by the address under which the hub's API has them, such as `models/org/name`."""

    repositories: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The files that were downloaded."""


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[Hub]:
    """Serve folders as repositories until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path == "":
            return self._send(200, b"a hub")
        if path.startswith("api/"):
            return self._api(path.removeprefix("api/"))
        return self._file(path if path.startswith("datasets/") else f"models/{path}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        repository, _, rest = self._split(self.path.removeprefix("/api/"))
        if repository is None or not rest.startswith("paths-info/"):
            return self._missing("RepoNotFound")
        names = json.loads(asked)["paths"] if asked.startswith("{") else []
        self._json([entry for entry in _tree(repository) if entry["path"] in names])

    def _split(self, path: str) -> tuple[Path | None, str, str]:
        name, rest = "/".join(path.split("/")[:3]), "/".join(path.split("/")[3:])
        return self.hub.repositories.get(name), name, rest

    def _api(self, path: str) -> None:
        repository, name, rest = self._split(path)
        if repository is None:
            return self._missing("RepoNotFound")
        if rest.startswith("tree/"):
            return self._json(_tree(repository))
        siblings = [{"rfilename": entry["path"]} for entry in _tree(repository)]
        self._json({"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _file(self, path: str) -> None:
        repository, _, rest = self._split(path)
        file = repository / rest.split("/", 2)[2] if repository and rest.startswith("resolve/") else None
        if file is None or not file.is_file():
            return self._missing("EntryNotFound" if repository else "RepoNotFound")
        if self.command == "GET":
            self.hub.asked.append(file.name)
        content = file.read_bytes()
        self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", **{"X-Error-Code": code})

    def _send(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _tree(folder: Path) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]
