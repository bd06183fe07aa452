"""A gateway in front of a service, which can lose the service, a request, or an answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx2

_OF_THE_CONNECTION = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


class Gate:
    """Hands requests on, and answers back.

    Attributes:
        url: where it is entered.
        away: the status of the page that it answers itself, as gateways do that find no service; 0 while there is one.
        unheard: a request, by method and path, that it keeps for itself.
        unanswered: a request that it hands on, and whose answer it keeps for itself.
        cut: the end of the path of requests whose answers break off in the middle.
        seen: the requests so far, by method and path; those that were handed on, once they were answered.
    """

    def __init__(self, target: str) -> None:
        self.away = 0
        self.unheard = self.unanswered = self.cut = ""
        self.seen: list[str] = []
        self.closed = threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1
            protocol_version: ClassVar[str] = "HTTP/1.1"

            def hand_on(self) -> None:
                named = f"{self.command} {self.path}"
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                answer = httpx2.Response(gate.away or 502, text="<html>", headers={"Content-Type": "text/html"})
                if not gate.away and named != gate.unheard:
                    headers = {
                        name: self.headers[name] for name in self.headers if name.lower() not in _OF_THE_CONNECTION
                    }
                    answer = httpx2.request(
                        self.command, target + self.path, headers=headers, content=body, timeout=60, trust_env=False
                    )
                kept = named in {gate.unheard, gate.unanswered}
                gate.seen.append(named)  # last: whoever waits for it may let requests through again from here on
                if kept:
                    gate.closed.wait()
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers["content-type"])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                if gate.cut and self.path.endswith(gate.cut):
                    self.wfile.write(answer.content[: 2 * len(answer.content) // 3])
                    self.close_connection = True
                    return
                self.wfile.write(answer.content)

            do_GET = do_POST = hand_on  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def gated(target: str) -> Iterator[Gate]:
    """Put a gateway in front of a service until the block ends."""
    gate = Gate(target)
    thread = threading.Thread(target=gate.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield gate
    finally:
        gate.closed.set()
        gate.server.shutdown()
        gate.server.server_close()
        thread.join()
