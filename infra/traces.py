"""Traces: what was done for a request, as spans over OTLP to whoever collects them. Without an endpoint none is made.

The span of a request is the parent of all that is done for it in any process. What ties them together is its
`traceparent` (W3C Trace Context) in the rows of its shards: nothing of it travels in Redis. Of a batch, each run of a
shard is a trace of its own, linked to the request's, since thousands of spans in one trace serve nobody.

Spans hold ids, counts and kinds, as logs do: no text that anybody sent, and of an exception its type alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # loaded where there is an endpoint: it takes a third of a second
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext, SpanKind, Tracer
    from opentelemetry.trace import Span as OtelSpan

Attributes = Mapping[str, str | int | float]
Kind = Literal["server", "internal", "producer", "consumer", "client"]

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1
_EXPORT_SECONDS = 5.0
"""How long one export may take, all its tries together; then those spans are lost."""
_EVERY_MILLISECONDS = 1000


class Span:
    """A span under way; one that does nothing, where nothing is traced."""

    def __init__(self, span: "OtelSpan | None" = None) -> None:
        self._span = span

    def note(self, attributes: Attributes) -> None:
        """Add ids, counts and kinds."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Give it the name that is known by now."""
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, kind: str) -> None:
        """Say that it failed, and of what kind the failure is."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - as above

            self._span.set_status(Status(StatusCode.ERROR, kind))


_NOTHING = Span()


class Traces:
    """The spans of one process. Thread-safe. `Traces()` makes none and costs nothing."""

    def __init__(self, tracer: "Tracer | None" = None, close: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer
        self.close = close

    @property
    def on(self) -> bool:
        """Whether anything is traced."""
        return self._tracer is not None

    def current(self) -> str | None:
        """The `traceparent` of the span that this thread or task is in; None where that is not kept."""
        if self._tracer is None:
            return None
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        at = get_current_span().get_span_context()
        return f"00-{at.trace_id:032x}-{at.span_id:016x}-01" if at.is_valid and at.trace_flags.sampled else None

    def request(self, name: str, given: str | None = None) -> AbstractContextManager[Span]:
        """Begin a trace, or take part in a caller's.

        Args:
            name: of the span.
            given: what the caller sent as `traceparent`; what is none is left out.
        """
        return (
            nullcontext(_NOTHING) if self._tracer is None else self._span(name, "server", parent=given, attributes={})
        )

    def follow(
        self,
        name: str,
        traceparent: str | None,
        attributes: Attributes,
        *,
        kind: Kind = "consumer",
        apart: bool = False,
    ) -> AbstractContextManager[Span]:
        """Go on with a trace that began in another process. What is not traced there is not traced here.

        Args:
            name: of the span.
            traceparent: where it began.
            attributes: ids, counts and kinds.
            kind: what the span is to the one that it follows.
            apart: begin a trace of its own, linked to that one.
        """
        if self._tracer is None or traceparent is None:
            return nullcontext(_NOTHING)
        place = {"link": traceparent} if apart else {"parent": traceparent}
        return self._span(name, kind, attributes=attributes, **place)

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """Be a part of the span that this thread is in; nothing where it is in none."""
        if self._tracer is None or self.current() is None:
            return nullcontext(_NOTHING)
        return self._span(name, "internal", attributes=attributes)

    def tell(self, name: str, traceparent: str, attributes: Attributes, *, began: int, ended: int) -> None:
        """Tell of something that is over, as `follow` would have. Times are nanoseconds since 1970."""
        if self._tracer is not None:
            span = self._tracer.start_span(
                name, _context(traceparent), _kind("producer"), attributes=attributes, start_time=began
            )
            span.end(ended)

    @contextmanager
    def _span(
        self,
        name: str,
        kind: Kind,
        *,
        attributes: Attributes,
        parent: str | None = None,
        link: str | None = None,
    ) -> Iterator[Span]:
        assert self._tracer is not None  # noqa: S101 - every caller has looked
        with self._tracer.start_as_current_span(
            name,
            context=_context(parent) if parent or link else None,
            kind=_kind(kind),
            attributes=attributes,
            links=_links(link),
            record_exception=False,  # its message may quote what somebody sent
            set_status_on_exception=False,
        ) as made:
            span = Span(made)
            try:
                yield span
            except Exception as error:
                span.fail(type(error).__name__)
                raise


def begin(process: str, *, endpoint: str | None, share: float) -> Traces:
    """Begin to trace in this process. The composition root calls it, and calls `close` at the end.

    Args:
        process: which one this is.
        endpoint: the collector's URL for OTLP over HTTP, such as http://host:4318; None for no traces. Headers and
            certificates for it are taken from the variables that OpenTelemetry defines, OTEL_EXPORTER_OTLP_HEADERS
            for instance.
        share: of requests, and of runs of batches' shards, from 0 to 1.
    """
    if not endpoint:
        return Traces()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    of_share = TraceIdRatioBased(share)
    provider = TracerProvider(
        # By the trace's id, so that all processes think the same of it, and callers cannot ask for more.
        sampler=ParentBased(of_share, remote_parent_sampled=of_share),
        resource=Resource.create(
            {
                "service.namespace": "nightcourt",
                "service.name": f"nightcourt-{process}",
                "service.version": version("nightcourt"),
            }
        ),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MILLISECONDS))
    return Traces(provider.get_tracer("nightcourt"), provider.shutdown)


def _place(traceparent: str | None) -> "SpanContext | None":
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None:
        return None
    flags = TraceFlags(int(found[3], 16) & _SAMPLED)
    return SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=flags)


def _context(traceparent: str | None) -> "Context":
    """A context that holds this parent, or none where it is none, and nothing of the present one."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context  # noqa: PLC0415

    place = _place(traceparent)
    return Context() if place is None else set_span_in_context(NonRecordingSpan(place), Context())


def _links(traceparent: str | None) -> "list[Link]":
    from opentelemetry.trace import Link  # noqa: PLC0415

    place = _place(traceparent)
    return [] if place is None else [Link(place)]


def _kind(kind: Kind) -> "SpanKind":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return SpanKind[kind.upper()]
