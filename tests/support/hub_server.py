"""A model hub on this machine: the few answers that uploads and downloads need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class _Hub(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        place, name = (words[2:4], "") if words[0] == "api" else (words[:2], "/".join(words[4:]))
        files = self.repositories.get("/".join(place))
        if files is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "tree" in words:
            rows = [
                {"type": "file", "path": n, "size": len(d), "oid": "0" * 40}
                for n, d in files.items()
            ]
            self._answer(rows)
        elif words[0] == "api":
            siblings = [{"rfilename": n} for n in files]
            self._answer({"id": "/".join(place), "sha": COMMIT, "siblings": siblings})
        elif name not in files:
            self._answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            tag = hashlib.sha256(files[name]).hexdigest()
            self._answer(files[name], X_Repo_Commit=COMMIT, ETag=f'"{tag}"')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        words = urlsplit(self.path).path.strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer secret":
            self._answer({"error": "Invalid username or password."}, 401)
        elif words[1] == "repos":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif "preupload" in words:
            asked = json.loads(body)["files"]
            self._answer(
                {"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        elif "validate-yaml" in words:
            self._answer({"errors": [], "warnings": []})
        else:
            files = self.repositories["/".join(words[2:4])]
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    value = operation["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{'/'.join(words[2:4])}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url})


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Serve a hub whose token is "secret"; yield its address, and the files by repository."""
    repositories: dict[str, dict[str, bytes]] = {}
    handler = type("Hub", (_Hub,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()
