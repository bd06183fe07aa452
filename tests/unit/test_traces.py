"""Spans: which are made, whose they are, and what never stands in them."""

from collections.abc import Iterator

import pytest
from support.collector import Collector, collecting

from infra import traces
from infra.traces import Traces

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of the test's own."""
    with collecting() as running:
        yield running


def begin(collector: Collector, share: float = 1.0) -> Traces:
    """Trace to this collector."""
    return traces.begin("test", endpoint=collector.url, share=share)


@pytest.mark.parametrize("endpoint", [None, ""])
def test_without_an_endpoint_there_is_nothing(endpoint: str | None):
    """Every way to make a span makes none, and nothing is there to go on with."""
    off = traces.begin("test", endpoint=endpoint, share=1.0)
    assert not off.on
    with off.request("a", SAMPLED) as first, off.follow("b", SAMPLED, {}) as second, off.step("c", {}) as third:
        for span in (first, second, third):
            span.note({"n": 1})
            span.rename("d")
            span.fail("e")
        assert off.current() is None
    off.tell("f", SAMPLED, {}, began=0, ended=1)
    off.close()


def test_what_is_not_traced_elsewhere_is_not_traced_here(collector: Collector):
    """Without a parent from elsewhere no span is made, and a step needs one to be part of."""
    spans = begin(collector)
    with spans.follow("judge", None, {}), spans.step("score", {}):
        assert spans.current() is None
    spans.close()
    assert collector.spans() == []


def test_an_exception_leaves_its_type_and_nothing_else(collector: Collector):
    """Its message may quote what somebody sent."""
    spans = begin(collector)

    def fail() -> None:
        with spans.request("a"), spans.step("b", {}):
            raise ValueError("the prompt was XYZZY")

    with pytest.raises(ValueError, match="XYZZY"):
        fail()
    spans.close()
    assert [(each.name, each.failed) for each in collector.spans()] == [("b", "ValueError"), ("a", "ValueError")]
    assert not any(b"XYZZY" in body for body in collector.bodies)


def test_a_share_of_none_keeps_nothing(collector: Collector):
    """Not even what a caller asks to have traced."""
    spans = begin(collector, share=0.0)
    with spans.request("a", SAMPLED):
        assert spans.current() is None
    spans.close()
    assert collector.spans() == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00",
        f"{SAMPLED}-",
        SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        SAMPLED.upper(),
        f" {SAMPLED}",
    ],
)
def test_what_is_no_traceparent_begins_a_trace(collector: Collector, given: str):
    """A caller's text is taken for what the standard says, or not at all."""
    spans = begin(collector)
    with spans.request("a", given):
        assert spans.current()
    spans.close()
    [only] = collector.spans()
    assert (only.parent, only.trace == "0af7651916cd43dd8448eb211c80319c") == ("", False)


def test_a_collector_that_is_away_holds_nothing_up():
    """Spans are lost then, and the process ends soon."""
    spans = traces.begin("test", endpoint="http://127.0.0.1:9", share=1.0)
    with spans.request("a"):
        assert spans.current()
    spans.close()
