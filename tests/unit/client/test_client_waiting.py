"""The Python client waiting for comparisons, against a service on loopback that answers by a script."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from support.receivers import Receiver, answering, self_signed
from support.scripted import DROP, GATEWAY, PAIR, Answer, Caller, ScriptedService, comparison, problem, stands

from producer.client import ClientError, NotDecided, ServerProblem, ServerUnreachable, UnexpectedAnswer
from schemas.problems import (
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    IDEMPOTENCY_KEY_REUSED,
    KEY_INVALID,
    NOT_FOUND,
    QUEUE_FULL,
    RATE_LIMITED,
    SCOPE_MISSING,
    UNAVAILABLE,
    ProblemKind,
)

ID = comparison()["id"]


def test_a_held_answer_has_more_time(court: ScriptedService, call: Caller) -> None:
    """While the server was asked to hold its answer, the client's patience starts when that is over."""
    court.script = [stands(after=0.3)]
    assert call(court.url, "get", ID, wait=15, client={"timeout": 0.05}).status.final
    assert call(court.url, "get", ID, wait=3600, client={"timeout": 0.05}).status.final
    assert [asked.headers["prefer"] for asked in court.asked] == ["wait=15.000", "wait=60.000"]


def test_waiting_polls_until_the_end(court: ScriptedService, call: Caller) -> None:
    """Each poll is held by the server for up to 20 seconds, with a breath between two of them."""
    court.script = [stands("queued"), stands("running"), stands("errored")]
    assert call(court.url, "wait", ID, timeout=600).status == "errored"
    assert [asked.headers["prefer"] for asked in court.asked] == ["wait=20.000"] * 3
    assert call.naps == [0.25, 0.25]


def test_waiting_ends_in_time_and_names_the_comparison(court: ScriptedService, call: Caller) -> None:
    """When the time is up the error has the comparison, so that anyone can go on waiting for it."""
    court.script = [stands("running", after=0.06)]
    with pytest.raises(TimeoutError, match=f"{ID} was still running") as raised:
        call(court.url, "wait", ID, timeout=0.1)
    assert isinstance(raised.value, NotDecided)
    assert (raised.value.comparison.id, raised.value.passing) == (ID, True)
    assert 1 <= len(court.asked) <= 3
    with pytest.raises(NotDecided):
        call(court.url, "wait", ID, timeout=0)
    assert "prefer" not in court.asked[-1].headers


def test_a_wait_outlasts_the_service(court: ScriptedService, call: Caller) -> None:
    """However often it does not answer, or a gateway before it says so, the wait goes on, with a breath of seconds."""
    away = [DROP, problem(UNAVAILABLE), GATEWAY, replace(GATEWAY, status=503), replace(GATEWAY, status=504)]
    court.script = [*away, stands("running"), *away, *away, stands("succeeded")]
    assert call(court.url, "wait", ID, timeout=600).status == "succeeded"
    assert max(call.naps) <= 5
    court.script = [stands("queued"), *away, *away, stands("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=600).status == "succeeded"
    court.script = [stands("running"), *away, problem(NOT_FOUND)]
    with pytest.raises(ServerProblem) as raised:
        call(court.url, "wait", ID, timeout=600)
    assert (raised.value.code, raised.value.passing) == ("not_found", False)


@pytest.mark.parametrize(
    "failure", [DROP, problem(UNAVAILABLE), problem(RATE_LIMITED), problem(BODY_TOO_SLOW), GATEWAY]
)
def test_judging_files_until_its_time_is_over(court: ScriptedService, call: Caller, failure: Answer) -> None:
    """However often it cannot be filed, and however seldom other calls are made again, it is tried under one key."""
    court.script = [*[failure] * 12, stands("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=600, client={"max_retries": 0}).status == "succeeded"
    assert len(call.naps) == 12
    assert max(call.naps) <= 5
    assert len({asked.headers["idempotency-key"] for asked in court.asked}) == 1
    court.script = [replace(failure, after=0.02)]
    with pytest.raises(ClientError) as raised:
        call(court.url, "judge", *PAIR.values(), timeout=0.1)
    assert raised.value.passing
    assert not isinstance(raised.value, NotDecided)


def test_judging_waits_for_a_service_that_starts(call: Caller) -> None:
    """While nobody listens yet, nothing is lost either."""
    court = ScriptedService(away=True)
    court.script, call.meanwhile = [stands("succeeded")], court.arrive
    try:
        assert call(court.url, "judge", *PAIR.values(), timeout=600).status == "succeeded"
    finally:
        court.close()


def test_judging_heeds_retry_after(court: ScriptedService, call: Caller) -> None:
    """It files again no sooner than it was told to, and not at all where that is too late."""
    court.script = [problem(QUEUE_FULL, Retry_After="7"), problem(QUEUE_FULL, Retry_After="20")]
    with pytest.raises(ServerProblem, match="Too many comparisons are queued"):
        call(court.url, "judge", *PAIR.values(), timeout=15)
    [nap] = call.naps
    assert 7 <= nap <= 7.2


@pytest.mark.parametrize("kind", [KEY_INVALID, SCOPE_MISSING, BODY_TOO_LARGE, IDEMPOTENCY_KEY_REUSED])
def test_judging_asks_once_where_that_is_of_no_use(court: ScriptedService, call: Caller, kind: ProblemKind) -> None:
    """What stays wrong is raised at once, whatever time is left."""
    court.script = [problem(kind)]
    with pytest.raises(ServerProblem) as raised:
        call(court.url, "judge", *PAIR.values(), timeout=600)
    assert (raised.value.code, raised.value.passing, len(court.asked), call.naps) == (kind.code, False, 1, [])


def test_a_certificate_that_is_not_trusted_stays_so(call: Caller, tmp_path: Path) -> None:
    """Nobody waits for another one until the time is over."""
    with (
        Receiver(answering(200), tls=self_signed("court", tmp_path / "court.pem")) as other,
        pytest.raises(ServerUnreachable, match="certificate verify failed") as raised,
    ):
        call(f"https://127.0.0.1:{other.port}", "judge", *PAIR.values(), timeout=600)
    assert (raised.value.passing, call.naps) == (False, [])


def test_no_timeout_is_for_ever(court: ScriptedService, call: Caller) -> None:
    """With None a comparison is filed and waited for until it has ended, whenever that is."""
    court.script = [GATEWAY, stands("queued"), GATEWAY, stands("running"), stands("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=None).status == "succeeded"
    assert [asked.headers["prefer"] for asked in court.asked] == ["wait=20.000"] * 5
    court.script = [stands("running"), stands("succeeded")]
    assert call(court.url, "wait", ID, timeout=None).status == "succeeded"


@pytest.mark.parametrize("failure", [DROP, problem(UNAVAILABLE), GATEWAY])
def test_a_wait_that_ends_while_the_service_is_away(court: ScriptedService, call: Caller, failure: Answer) -> None:
    """What was seen last is what the time ended on, and why no more is known stands behind; nothing seen, it is all."""
    court.script = [stands("running"), failure]
    with pytest.raises(NotDecided) as raised:
        call(court.url, "wait", ID, timeout=0.5)
    assert raised.value.comparison.status == "running"
    with pytest.raises(ClientError) as alone:
        call(court.url, "wait", ID, timeout=0.1)
    for error in (raised.value.__cause__, alone.value, pickle.loads(pickle.dumps(alone.value))):  # noqa: S301 - our own
        assert type(error) is type(alone.value)
        assert isinstance(error, ServerUnreachable | ServerProblem | UnexpectedAnswer)
        assert error.passing


def test_no_retry_outlasts_the_wait(court: ScriptedService, call: Caller) -> None:
    """A server that asks for more patience than there is time left is told on at once."""
    court.script = [problem(UNAVAILABLE, Retry_After="20")]
    with pytest.raises(ServerProblem):
        call(court.url, "wait", ID, timeout=5)
    assert (len(court.asked), call.naps) == (1, [])


def test_judging_is_filing_and_waiting(court: ScriptedService, call: Caller) -> None:
    """One call gives the verdict; where the first request brings it already, there is no second."""
    court.script = [stands("queued"), stands("succeeded")]
    assert call(court.url, "judge", *PAIR.values(), timeout=30, tie_margin=0.1).status == "succeeded"
    filed, polled = court.asked
    assert filed.json == {**PAIR, "tie_margin": 0.1}
    assert filed.headers["prefer"] == "wait=20.000"
    assert (polled.method, polled.path) == ("GET", f"/v1/comparisons/{ID}")
    assert call(court.url, "judge", *PAIR.values(), timeout=19).status == "succeeded"
    assert 9 < float(court.asked[2].headers["prefer"].removeprefix("wait=")) <= 19
    assert len(court.asked) == 3


def test_waiting_for_a_turn_is_no_more_time(court: ScriptedService, call: Caller) -> None:
    """Where others keep the connections, an answer is held for what is left of the time by then, and the rest ends."""
    court.script = [stands("queued", after=1.2)]
    found = call.together(court.url, "judge", *PAIR.values(), timeout=1.8, calls=3, room=1)
    assert [type(each) for each in found] == [NotDecided] * 3
    filed = [asked for asked in court.asked if asked.method == "POST"]
    first, *others = [float(asked.headers.get("prefer", "wait=0").removeprefix("wait=")) for asked in filed]
    assert first <= 1.8
    assert max(others) < first - 0.6
    assert len(court.asked) < 6
    court.script = [stands("queued", after=1.2)]
    found = call.together(court.url, "wait", ID, timeout=0.6, calls=2, room=1)
    assert {type(each) for each in found} == {NotDecided, ServerUnreachable}
    assert any("was not asked: all 100 connections of this client were taken" in str(each) for each in found)
    court.script = [replace(DROP, after=0.3)]
    found = call.together(court.url, "judge", *PAIR.values(), timeout=0.9, calls=3, room=1)
    assert [type(each) for each in found] == [ServerUnreachable] * 3
    assert not any("was not asked" in str(each) for each in found)  # each was, once at least
