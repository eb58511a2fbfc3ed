"""An OpenAI-compatible endpoint over real HTTP, whose answers and faults a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """An HTTP answer that is no chat completion; or none at all, when the connection is cut."""

    status: int = 500
    body: str = "out of order"
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})
    cut: bool = False


Reply = Callable[[str], str | Fault]


@dataclass
class ChatServer:
    """Where the server is, what it was asked, and how many requests it had under way at most."""

    url: str = ""
    reply: Reply = lambda _: "[[A]]"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def serving(reply: Reply) -> Iterator[ChatServer]:
    """A server on a free port for as long as the block lasts."""
    state = ChatServer(reply=reply)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.keys.append(self.headers["Authorization"])
                state.busy += 1
                state.busiest = max(state.busiest, state.busy)
            found = state.reply(body["messages"][0]["content"]) if self.path == "/v1/chat/completions" else Fault(404)
            with state.lock:
                state.busy -= 1
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has given up, or was killed
                self._send(found)

        def _send(self, found: str | Fault) -> None:
            if isinstance(found, str):
                usage = {"prompt_tokens": 100, "completion_tokens": 3}
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": found}}], "usage": usage})
                found = Fault(200, body, {})
            if found.cut:
                self.close_connection = True
                return
            content = found.body.encode()
            self.send_response(found.status)
            for name, value in {**found.headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
