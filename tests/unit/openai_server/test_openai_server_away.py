"""A server that fails is asked first what it has answered before: only then is a prompt to blame for a failure."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.model_server import ASKED, ModelServer, Trouble, impatient, serving

from worker.engines.base import EngineAwayError, EngineError, EngineGoneError, Score
from worker.engines.openai_server import OpenAIServerEngine


@pytest.fixture(params=["vllm", "llamacpp"])
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    """A server that is well; of the second kind, one that tokenises, too."""
    with serving(ModelServer(kind=request.param)) as started:
        yield started


@pytest.fixture
def engine(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServerEngine]:
    """An engine of little patience that has found it well."""
    with impatient(server, tmp_path, monkeypatch, request=0.5, patience=1.5) as opened:
        yield opened


def fail_once(server: ModelServer, engine: OpenAIServerEngine) -> list[int]:
    """Let the server fail at a prompt, so that it is doubted from then on; gives the prompt."""
    prompt = engine.encode(ASKED)
    server.troubles.append(Trouble(answer=lambda _: {}))
    with pytest.raises(EngineError):
        engine.score([prompt])
    return prompt


def ask(engine: OpenAIServerEngine, prompt: list[int]) -> list[Score]:
    """Ask as the docket does: once more where nothing was asked."""
    try:
        return engine.score([prompt])
    except EngineAwayError:
        return engine.score([prompt])


def test_a_call_takes_no_longer_for_having_waited(server: ModelServer, engine: OpenAIServerEngine) -> None:
    """The watchdog ends a worker whose engine takes longer than its patience: of what is left nothing is asked."""
    prompt = fail_once(server, engine)
    server.troubles.extend([Trouble(status=503)] * 6)
    with pytest.raises(EngineAwayError, match="answers again only now"):
        engine.score([prompt])
    assert engine.score([prompt])


def test_all_who_wait_have_one_wait(server: ModelServer, engine: OpenAIServerEngine) -> None:
    """A server that is ill is not asked by each of many threads what one asks for all of them."""
    prompt = fail_once(server, engine)
    server.troubles.extend([Trouble(status=500)] * 10_000)
    server.asked.clear()
    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(engine.score, [prompt]) for _ in range(8)]:
            with pytest.raises(EngineAwayError):
                each.result()
    assert server.busiest <= 2


@pytest.mark.parametrize("trouble", [Trouble(status=500), Trouble(status=401), Trouble(cut=True), Trouble(late=9)])
def test_nothing_is_put_to_a_server_that_fails_at_everything(
    server: ModelServer, engine: OpenAIServerEngine, trouble: Trouble
) -> None:
    """After a failure it has to answer first what it answered at the start; until then no prompt is put to it."""
    prompt = engine.encode(ASKED)
    server.troubles.extend([trouble] * 500)
    with pytest.raises(EngineError) as caught:
        engine.score([prompt])
    assert not isinstance(caught.value, EngineAwayError)
    server.asked.clear()
    for call in (lambda: engine.score([prompt]), lambda: engine.generate(prompt, 5)):
        with pytest.raises(EngineAwayError, match="fails still"):
            call()
    assert prompt not in [each["prompt"] for each in server.asked]
    assert server.troubles
    server.troubles.clear()
    assert ask(engine, prompt)
    server.asked.clear()
    assert engine.score([prompt])
    assert [each["prompt"] for each in server.asked] == [prompt]


def refuse(server: ModelServer) -> None:
    """Let it refuse what it has taken so far."""
    server.complete = lambda _: (400, {})


def have_other_tokens(server: ModelServer) -> None:
    """Let its ids mean something else, so that its odds do."""
    server.shift = 1


def test_a_server_that_refuses_everything_is_doubted_too(server: ModelServer, engine: OpenAIServerEngine) -> None:
    """One that was started anew with other options refuses what it has taken before, and no prompt is to blame."""
    prompt = engine.encode(ASKED)
    refuse(server)
    with pytest.raises(EngineError, match="status 400"):
        engine.score([prompt])
    with pytest.raises(EngineGoneError):
        engine.score([prompt])


@pytest.mark.parametrize(
    ("change", "said"),
    [(refuse, "refused /v1/completions with status 400"), (have_other_tokens, "its odds are others")],
)
def test_a_server_that_comes_back_as_another_ends_the_worker(
    server: ModelServer, engine: OpenAIServerEngine, change: Callable[[ModelServer], None], said: str
) -> None:
    """Only a new start finds out how it is to be asked now, or says why it cannot be used."""
    prompt = fail_once(server, engine)
    change(server)
    with capture_logs() as logs, pytest.raises(EngineGoneError, match="answers otherwise"):
        engine.score([prompt])
    assert said in logs[-1]["trouble"]


@pytest.mark.parametrize("server", ["llamacpp"], indirect=True)
def test_a_server_that_tokenises_is_away_for_that_as_well(server: ModelServer, engine: OpenAIServerEngine) -> None:
    """What it failed at first may have been the text's fault; from then on a failure is the server's."""
    server.troubles.extend([Trouble(status=500)] * 500)
    with pytest.raises(EngineError) as caught:
        engine.encode(ASKED)
    assert not isinstance(caught.value, EngineAwayError)
    for _ in range(2):
        with pytest.raises(EngineAwayError, match="fails still"):
            engine.encode(ASKED)
    server.troubles.clear()
    prompt = engine.encode(ASKED)
    assert engine.score([prompt])
