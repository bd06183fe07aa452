"""A collector of traces on loopback: takes what OTLP over HTTP sends, and keeps it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.canaries import watch


@dataclass(frozen=True)
class Seen:
    """One span, with its ids in hexadecimal digits."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    """Traces and spans that it is linked to."""
    attributes: dict[str, Any]
    failed: str | None
    """What its status says, where that is an error."""
    seconds: float


@dataclass
class Collector:
    """What came to a port of this machine."""

    port: int = 0
    bodies: list[bytes] = field(default_factory=list)
    """Every export as it came: protobuf, whose texts are plain in it."""

    @property
    def url(self) -> str:
        """What is set as the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Seen]:
        """Every span so far, in the order of their coming."""
        return [seen for body in list(self.bodies) for seen in _spans(body)]


def _spans(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    service=service,
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    attributes=_values(span.attributes),
                    failed=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
                    seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server names it
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
            for body in collector.bodies:
                watch("spans", body.decode(errors="replace"))
