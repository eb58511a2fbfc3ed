"""A hub of one data set on this machine, for the clients of the real one: two commits, each of one file of rows."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA_SET = "someone/something"
FILE = "train.jsonl"


@contextmanager
def serving(commits: Mapping[str, list[dict[str, str]]], branches: Mapping[str, str]) -> Iterator[str]:
    """The address of a hub; `commits` are the rows of each, `branches` (and tags) name one of them."""
    files = {commit: "".join(json.dumps(row) + "\n" for row in rows).encode() for commit, rows in commits.items()}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api").strip("/")
            what, _, rest = path.removeprefix(f"datasets/{DATA_SET}").strip("/").partition("/")
            revision, _, name = rest.partition("/")
            if not path.startswith(f"datasets/{DATA_SET}"):
                return self._refuse("RepoNotFound")
            commit = branches.get(revision or "main", revision)
            if commit not in files:
                return self._refuse("RevisionNotFound")
            described = {"type": "file", "oid": commit, "size": len(files[commit]), "path": FILE}
            match what:
                case "" | "revision":
                    return self._answer({"id": DATA_SET, "sha": commit, "siblings": [{"rfilename": FILE}], "tags": []})
                case "tree" if not name:
                    return self._answer([described])
                case "resolve" if name == FILE:
                    return self._reply(200, files[commit], {"X-Repo-Commit": commit, "ETag": f'"{commit}"'})
            return self._refuse("EntryNotFound")

        def _answer(self, value: object) -> None:
            self._reply(200, json.dumps(value).encode(), {})

        def _refuse(self, code: str) -> None:
            self._reply(404, b"{}", {"X-Error-Code": code})

        def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
