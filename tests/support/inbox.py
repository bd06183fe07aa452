"""A receiver of callbacks over HTTP that answers as a test tells it, and keeps what it got."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Message:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        """The event's id."""
        return self.headers["webhook-id"]


Answer = tuple[int, dict[str, str]]


@dataclass
class Inbox:
    """What came to a port of this machine, in order; `answer` says what is replied to each."""

    port: int = 0
    answer: Callable[[Message], Answer | int] = lambda _: 204
    messages: list[Message] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where to send."""
        return f"http://127.0.0.1:{self.port}/hook"

    def counts(self) -> Counter[str]:
        """How often each event came."""
        return Counter(message.id for message in self.messages)


@contextmanager
def open_inbox(answer: Callable[[Message], Answer | int] = lambda _: 204) -> Iterator[Inbox]:
    """Receive on loopback until the block ends."""
    inbox = Inbox(answer=answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            message = Message(path=self.path, headers=headers, body=body, at=time.time())
            inbox.messages.append(message)
            answer = inbox.answer(message)
            status, extra = (answer, {}) if isinstance(answer, int) else answer
            self.send_response(status)
            for name, value in {"Content-Length": "0", **extra}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        inbox.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield inbox
        finally:
            server.shutdown()
            thread.join()
