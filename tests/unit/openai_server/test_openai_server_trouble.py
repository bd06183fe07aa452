"""What becomes of a server's troubles, and of what is under way when the engine ends."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.model_server import ASKED, ModelServer, Trouble
from support.waiting import wait_until

from infra import pulse
from worker.engines import openai_server, remote
from worker.engines.base import EngineError, EngineGoneError
from worker.engines.openai_server import OpenAIServerEngine

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.usefixtures("quick")
class TestTrouble:
    def after(self, server: ModelServer, engine: OpenAIServerEngine, *troubles: Trouble) -> list:
        """Score one prompt with these troubles on the way; returns the log."""
        server.troubles.extend(troubles)
        with capture_logs() as logs:
            assert engine.score([engine.encode(ASKED)])[0].mass == pytest.approx(0.9)
        return logs

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_overload_and_a_restart_behind_a_proxy_are_waited_out(self, start, open_engine, status):
        """However often it is said, within the patience; the server's own wait is kept to."""
        server = start()
        busy = Trouble(status=status, headers={"Retry-After": "0"})
        logs = self.after(
            server, open_engine(server), *[busy] * 5, Trouble(status=status, headers={"Retry-After": "1"})
        )
        assert len(server.asked) == 7
        assert logs[-1]["retry_in"] >= 1

    def test_a_wait_beyond_the_patience_uses_it_up(self, start, open_engine):
        """The server is not asked before its time, and the attempt fails no sooner than others: there are few."""
        server = start()
        engine = open_engine(server, patience_seconds=0.5)
        server.troubles.append(Trouble(status=429, headers={"Retry-After": "3600"}))
        began = time.monotonic()
        with pytest.raises(EngineError, match="in 1 tries: it answered with status 429"):
            engine.score([engine.encode(ASKED)])
        assert time.monotonic() - began > 0.49

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_key_or_a_model_that_is_refused_later_is_waited_out(self, start, open_engine, status):
        """It was taken before, so no prompt is to blame: somebody has changed it, and will mend that."""
        server = start()
        self.after(server, open_engine(server), *[Trouble(status=status)] * 5)
        assert len(server.asked) == 6

    @pytest.mark.parametrize("status", [400, 413, 422, 307])
    def test_a_refusal_is_not_asked_again(self, start, open_engine, status):
        """What the server said is not repeated: it may quote the prompt."""
        server = start()
        engine = open_engine(server)
        server.troubles.append(Trouble(status=status))
        with pytest.raises(EngineError, match=f"refused /v1/completions with status {status}") as caught:
            engine.score([engine.encode(ASKED)])
        assert "Which" not in str(caught.value)
        assert len(server.asked) == 1

    def test_a_failure_is_tried_a_few_times(self, start, open_engine):
        """A prompt that a server fails at each time is not put to it for minutes; others are not held up."""
        server = start()
        engine = open_engine(server)
        self.after(server, engine, Trouble(status=500), Trouble(status=501))
        server.asked.clear()
        server.troubles.extend([Trouble(status=500)] * 3)
        with pytest.raises(EngineError, match="in 3 tries: it answered with status 500") as caught:
            engine.score([engine.encode(ASKED)])
        assert not isinstance(caught.value, EngineGoneError)
        assert len(server.asked) == 3

    def test_a_cut_connection_is_tried_again(self, start, open_engine):
        """An answer that never came was not taken for one."""
        server = start()
        self.after(server, open_engine(server), Trouble(cut=True), Trouble(cut=True))
        assert len(server.asked) == 3

    @pytest.mark.parametrize("trouble", [Trouble(late=30), Trouble(trickle=True)], ids=["silent", "trickling"])
    def test_a_request_has_a_deadline_for_all_of_it(self, start, open_engine, trouble):
        """Neither silence nor a byte now and then holds a request for longer; another try may do better."""
        server = start()
        engine = open_engine(server, request_seconds=1.0)
        logs = self.after(server, engine, trouble)
        assert [each["trouble"] for each in logs] == ["it did not answer (TimeoutError)"]
        assert len(server.asked) == 2

    def test_a_step_has_one_patience_for_all_its_prompts(self, start, open_engine):
        """However many turns its prompts take, each answered in time: whoever waits for the step is told in time."""
        server = start()
        engine = open_engine(server, requests=1, patience_seconds=1.0)
        server.troubles.extend([Trouble(late=0.3)] * 10)
        with pytest.raises(EngineError, match="could not be brought to answer") as caught:
            engine.score([engine.encode(ASKED)] * 10)
        assert not isinstance(caught.value, EngineGoneError)
        assert len(server.asked) < 10

    def test_an_answer_without_end_is_cut_off(self, start, open_engine, monkeypatch):
        """Memory has an end, too."""
        server = start()
        engine = open_engine(server)
        monkeypatch.setattr(remote, "_MOST_BYTES", 100)
        with pytest.raises(EngineError, match="has no end"):
            engine.score([engine.encode(ASKED)])

    def test_an_ill_server_stops_no_pulse(self, start, open_engine, tmp_path):
        """A restart of the worker would not mend it, so the engine is well while the server takes nothing."""
        server = start(key="right")
        engine = open_engine(server, key="right", patience_seconds=0.5)
        server.key = "another"
        with pytest.raises(EngineError):
            engine.score([engine.encode(ASKED)])
        stop = threading.Event()
        pulse.keep(tmp_path / "pulse", every=60, stop=stop, well=engine.health)
        wait_until((tmp_path / "pulse").exists, within=60, what="the pulse beats")
        stop.set()

    def test_an_engine_that_does_not_get_on_is_not_well(self, start, open_engine, monkeypatch):
        """Where its own thread stands still, a restart helps; once it goes on, all is well again."""
        monkeypatch.setattr(openai_server, "_HEALTH_SECONDS", 0.2)
        engine = open_engine(start())
        go_on = threading.Event()
        engine._remote._loop.call_soon_threadsafe(go_on.wait)
        try:
            assert not engine.health()
        finally:
            go_on.set()
        wait_until(engine.health, within=60, what="it goes on")


class TestClosing:
    def test_what_is_under_way_fails_and_nothing_is_taken_after(self, start, open_engine):
        """Closing, even twice, frees whoever waits."""
        server = start()
        engine = open_engine(server, request_seconds=30.0, patience_seconds=60.0)
        prompt = engine.encode(ASKED)
        server.troubles.append(Trouble(late=30))
        failed: list[BaseException] = []

        def wait() -> None:
            with pytest.raises(EngineGoneError) as caught:
                engine.score([prompt])
            failed.append(caught.value)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: server.asked, within=60, what="the prompt is under way")
        engine.close()
        engine.close()
        thread.join(timeout=60)
        assert failed
        assert not engine.health()
        with pytest.raises(EngineGoneError):
            engine.score([prompt])


CANARY = """
import sys
from pathlib import Path
from infra import logs
from infra import settings
from schemas.problems import Problem
from worker.opening import open_engine as open_engine_of
from worker.engines import remote
from worker.engines.base import EngineError, Prompt
from worker.engines.openai_server import OpenAIServerEngine

logs.configure(process="worker", level="debug", style="json")
remote._FIRST_PAUSE = 0.01
engine = OpenAIServerEngine(sys.argv[1], key="CANARY-key", tokenizer=Path(sys.argv[2]), patience_seconds=5)
for _ in range(3):
    try:
        engine.score([engine.encode(Prompt((("user", "CANARY-prompt"),), "[["))])
    except EngineError as error:
        print(repr(error))
engine.close()
try:
    OpenAIServerEngine(sys.argv[1], key="CANARY-wrong", tokenizer=Path(sys.argv[2]), patience_seconds=5)
except ValueError as error:
    print(repr(error))
print("done")
"""


def test_neither_key_nor_prompt_is_ever_logged(start, folder):
    """At the most talkative level, with a server that repeats both in its errors, no line holds either."""
    server = start(key="CANARY-key")
    # The probes at the start are answered; then overload, refusal and cut connections.
    server.troubles.extend([Trouble()] * 2 + [Trouble(status=429)] * 2 + [Trouble(status=400)])
    server.troubles.extend([Trouble(status=500), Trouble(cut=True), Trouble(status=503, headers={"Retry-After": "9"})])
    run = subprocess.run(
        [sys.executable, "-c", CANARY, server.url, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    assert run.stdout.endswith("done\n")
    assert "status 400" in run.stdout
    assert "refuses the key" in run.stdout
    assert run.stderr.count("engine_waits") >= 4
    assert "CANARY" not in run.stdout + run.stderr
