"""The engine for OpenAI-compatible servers, against a server of the tests' own that speaks as each kind does."""

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.model_server import ModelServer, Trouble, serving, toy_tokenizer, write_tokenizer
from support.waiting import wait_until
from tokenizers import Tokenizer, decoders

from infra import pulse, settings
from schemas.problems import Problem
from worker.app import open_engine as open_engine_of
from worker.engines import openai_server, remote
from worker.engines.base import VERDICT_OPENING, Engine, EngineError, EngineGoneError, Prompt
from worker.engines.chat import VerdictTokenError
from worker.engines.openai_server import OpenAIServerEngine, UnusableServerError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("vllm", "sglang", "tensorrt_llm", "somebody")
ASKED = Prompt((("user", "Which?"),), VERDICT_OPENING)

Open = Callable[..., OpenAIServerEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The toy tokenizer's files."""
    return write_tokenizer(tmp_path_factory.mktemp("toy") / "tokenizer")


@pytest.fixture
def start() -> Iterator[Callable[..., ModelServer]]:
    """Start servers, and stop them at the end."""
    with ExitStack() as stack:
        yield lambda **ways: stack.enter_context(serving(ModelServer(**ways)))


@pytest.fixture
def open_engine(folder: Path) -> Iterator[Open]:
    """Open engines on servers, with little patience, and close them at the end."""
    with ExitStack() as stack:

        def opened(server: ModelServer, **options) -> OpenAIServerEngine:
            chosen = {"tokenizer": folder, "patience_seconds": 5.0, "request_seconds": 2.0} | options
            engine = OpenAIServerEngine(f"{server.url}/v1", **chosen)
            stack.callback(engine.close)
            server.asked.clear()
            return engine

        yield opened


@pytest.fixture
def quick(monkeypatch) -> None:
    """Pauses between tries too short to wait for."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)


def odds(server: ModelServer, share: float) -> tuple[float, float]:
    """What the server thinks, in log-odds and mass."""
    return math.log(share / (1 - share)), server.mass


class TestOpening:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_server_gives_the_same_opinion(self, start, open_engine, kind):
        """Fields that a server refuses are left out, and ids and texts are read alike."""
        server = start(kind=kind)
        engine: Engine = open_engine(server)
        [score] = engine.score([engine.encode(ASKED)])
        log_odds, mass = odds(server, 0.8)
        assert score.log_odds == pytest.approx(log_odds)
        assert score.mass == pytest.approx(mass)
        assert score.seconds > 0
        assert engine.health()

    def test_what_is_sent_is_token_ids(self, start, open_engine):
        """Never a text, never a chat; greedy, one token, with this model's name."""
        server = start(kind="tensorrt_llm")
        engine = open_engine(server)
        ids = engine.encode(ASKED)
        engine.score([ids])
        assert server.asked == [{"model": "toy", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 20}]

    def test_vllm_is_asked_for_the_two_tokens_themselves(self, start, open_engine):
        """So they are never missing, however unlikely; and what it keeps for one tenant is salted."""
        server = start(kind="vllm")
        engine = open_engine(server)
        server.mass = 1e-6
        [score] = engine.score([engine.encode(ASKED)], salt="a tenant")
        assert score.mass == pytest.approx(1e-6)
        assert math.isfinite(score.log_odds)
        [body] = server.asked
        tokens = engine.card.verdict_tokens
        assert body["logprob_token_ids"] == [tokens.a, tokens.b]
        assert "tenant" not in body["cache_salt"]

    def test_the_card_says_what_the_server_says(self, start, open_engine):
        """Name, kind, version and limit are the server's word, and the label of the weights says that it is no more."""
        card = open_engine(start(context=1000), requests=4).card
        assert (card.engine, card.engine_build, card.model) == ("openai_server", "vllm 9.9", "toy")
        assert card.weights.startswith("unverified:sha256:")
        assert card.quantisation == "unknown"
        assert card.max_prompt_tokens == 999
        assert card.step_tokens == 4096
        assert "nobody here has seen its weights" in card.caveat
        assert "not named Skywork-Critic" in card.caveat

    def test_a_server_named_after_the_critic_keeps_half_of_the_caveat(self, start, open_engine):
        """Its judgement is known, its weights are still its own word; folders on its disk are not repeated."""
        card = open_engine(start(models=["/models/Skywork-Critic-Llama-3.1-8B"])).card
        assert card.model == "Skywork-Critic-Llama-3.1-8B"
        assert "weights" in card.caveat
        assert "how well" not in card.caveat

    def test_the_fingerprint_is_steady_and_tells_models_apart(self, start, open_engine):
        """What changes by itself, such as the hour, is left out of it; a name or a limit is not."""
        server = start()
        prints = {open_engine(server).card.weights for _ in range(2)}
        other = {open_engine(start(context=2048)).card.weights}
        assert len(prints) == 1
        assert not prints & other

    def test_a_server_that_does_not_tell_its_limit_gets_ours(self, start, open_engine):
        """trtllm-serve does not, so a setting does."""
        assert open_engine(start(context=None), context_tokens=512).card.max_prompt_tokens == 511

    def test_without_a_tokenizer_the_worker_does_not_start(self, start, open_engine):
        """The server's own would make control tokens of a candidate's text, and the message says so."""
        with pytest.raises(UnusableServerError, match=r"NIGHTCOURT_ENGINE_TOKENIZER.*control tokens"):
            open_engine(start(), tokenizer=None)

    def test_a_tokenizer_of_another_model_is_found_out(self, start, open_engine):
        """Ids that mean something else there make a prompt that no model goes on with as it should."""
        server = start(kind="sglang", shift=1)
        with pytest.raises(UnusableServerError, match="tokenizer is not that of the model"):
            open_engine(server)

    def test_texts_that_several_tokens_have_are_not_trusted(self, start, open_engine, tmp_path):
        """Where the server names tokens by text and two are written "A", its numbers could be either's."""
        twice = toy_tokenizer()
        twice.add_tokens([" A"])
        twice.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        folder = write_tokenizer(tmp_path / "twice", twice)
        with pytest.raises(UnusableServerError, match="texts that several tokens have"):
            open_engine(start(kind="sglang"), tokenizer=folder)
        assert open_engine(start(kind="vllm"), tokenizer=folder).health()

    def test_a_tokenizer_without_one_token_for_a_verdict_is_refused(self, start, open_engine, tmp_path):
        """One forward pass could not decide."""
        merged = toy_tokenizer()
        model = json.loads(merged.to_str())
        model["model"]["vocab"]["[A"] = 300
        model["model"]["merges"] = [["[", "A"]]
        folder = write_tokenizer(tmp_path / "merged", Tokenizer.from_str(json.dumps(model)))
        with pytest.raises(VerdictTokenError):
            open_engine(start(), tokenizer=folder)

    @pytest.mark.parametrize(("models", "named"), [(["toy"], "other"), (["toy", "two"], None), ([], None)])
    def test_the_wrong_model_or_no_choice_is_refused(self, start, open_engine, models, named):
        """The message lists the models that there are."""
        with pytest.raises(UnusableServerError, match=f"NIGHTCOURT_ENGINE_MODEL.*{', '.join(models) or 'none'}$"):
            open_engine(start(models=models), model=named)

    def test_one_of_several_models_is_taken_by_name(self, start, open_engine):
        """And asked for by it."""
        server = start(models=["toy", "two"])
        engine = open_engine(server, model="two")
        engine.score([engine.encode(ASKED)])
        assert server.asked[0]["model"] == "two"

    def test_a_server_without_log_probabilities_is_refused(self, start, open_engine):
        """TensorRT-LLM's older engines give one alternative alone unless built for more."""
        with pytest.raises(UnusableServerError, match="refused /v1/completions with status 400"):
            open_engine(start(kind="tensorrt_llm", most_alternatives=1))

    def test_a_form_that_a_server_fails_at_is_not_its_last(self, start, open_engine, quick):
        """A server may take fields that it then stumbles over; the next form is tried."""
        server = start(kind="somebody", stumbles=True)
        engine = open_engine(server)
        engine.score([engine.encode(ASKED)])
        assert server.asked[0].keys() == {"model", "prompt", "max_tokens", "temperature", "logprobs"}

    @pytest.mark.parametrize("key", [None, "wrong"])
    def test_a_refused_key_is_named_and_not_repeated(self, start, open_engine, key):
        """The message names the setting; neither key is in it."""
        with pytest.raises(UnusableServerError, match="refuses the key: set NIGHTCOURT_ENGINE_KEY") as caught:
            open_engine(start(key="right"), key=key)
        assert "right" not in str(caught.value)
        assert "wrong" not in str(caught.value)

    def test_the_right_key_opens(self, start, open_engine):
        """It goes with every request."""
        engine = open_engine(start(key="right"), key="right")
        assert engine.score([engine.encode(ASKED)])

    def test_nobody_there_is_said_after_the_patience(self, start, folder, quick):
        """A server that is still starting is waited for, and not for ever."""
        server = ModelServer()
        with serving(server):
            url = server.url
        with pytest.raises(UnusableServerError, match=r"could not be brought to answer.*ConnectError"):
            OpenAIServerEngine(url, tokenizer=folder, patience_seconds=0.2)


class TestSettings:
    def test_the_worker_opens_what_the_settings_name(self, start, folder):
        """Each setting reaches the engine: server, key, model, tokenizer, how many requests."""
        server = start(key="right", models=["toy", "two"])
        chosen = settings.load(
            engine="openai_server",
            engine_url=f"{server.url}/v1",
            engine_key="right",
            engine_model="two",
            engine_tokenizer=folder,
            engine_requests=3,
        )
        assert "right" not in repr(chosen)
        engine = open_engine_of(chosen)
        try:
            assert (engine.card.model, engine.card.step_tokens) == ("two", 3 * 1024)
        finally:
            engine.close()

    @pytest.mark.parametrize(
        "url",
        [
            None,
            "gpu-host:8000",
            "ftp://gpu-host",
            "http://",
            "http://me:secret@gpu-host/v1",
            "http://gpu-host:80OO",
            "http://[::1:8000/v1",
        ],
    )
    def test_an_url_that_is_none_is_refused(self, url):
        """The sentence names the setting, and does not repeat a password."""
        with pytest.raises(Problem, match="NIGHTCOURT_ENGINE_URL must be") as caught:
            settings.load(engine="openai_server", engine_url=url)
        assert "secret" not in caught.value.detail


class TestEncryption:
    @pytest.fixture
    def certificate(self, tmp_path) -> Path:
        """A certificate for 127.0.0.1 that nobody has signed, with its key."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("needs the program openssl to make a certificate")
        parts = [tmp_path / "key.pem", tmp_path / "certificate.pem"]
        named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *named]
        subprocess.run([*made, "-keyout", parts[0], "-out", parts[1], "-days", "2"], check=True, capture_output=True)
        both = tmp_path / "both.pem"
        both.write_text("".join(part.read_text() for part in parts))
        return both

    def test_a_certificate_nobody_vouches_for_is_refused_at_once(self, open_engine, certificate):
        """No patience helps there; the message names the setting that does."""
        with serving(ModelServer(), certificate) as server, capture_logs() as logs:
            with pytest.raises(UnusableServerError, match="NIGHTCOURT_ENGINE_CA_FILE"):
                open_engine(server)
            assert logs == []

    def test_a_certificate_of_ones_own_is_trusted(self, open_engine, certificate):
        """It is given by a file."""
        with serving(ModelServer(), certificate) as server:
            engine = open_engine(server, ca_file=certificate)
            assert engine.score([engine.encode(ASKED)])

    def test_certificates_that_cannot_be_read_are_named(self, open_engine, tmp_path):
        """A missing file and one that holds none are errors in words."""
        (tmp_path / "empty.pem").write_text("")
        for name in ("missing.pem", "empty.pem"):
            with pytest.raises(ValueError, match=f"NIGHTCOURT_ENGINE_CA_FILE: .*{name} cannot be read"):
                open_engine(ModelServer(), ca_file=tmp_path / name)


class TestScores:
    def test_scores_come_in_the_order_of_the_prompts(self, start, open_engine):
        """However the answers overtake each other, and with no more under way than allowed."""
        server = start()
        engine = open_engine(server, requests=3)
        server.likes = lambda text: int(text.split("#")[1]) / 100
        server.troubles.extend(Trouble(late=0.05) for _ in range(20))
        prompts = [engine.encode(Prompt((("user", f"#{at}#"),), VERDICT_OPENING)) for at in range(10, 30)]
        found = [score.log_odds for score in engine.score(prompts)]
        assert found == pytest.approx([odds(server, at / 100)[0] for at in range(10, 30)])
        assert server.busiest == 3

    @pytest.mark.parametrize(("share", "sign"), [(1.0, math.inf), (0.0, -math.inf)])
    def test_a_verdict_outside_the_list_is_a_vote(self, start, open_engine, share, sign):
        """A server that can only list the likeliest may leave one out, and then the odds are not known."""
        server = start(kind="sglang", most_alternatives=5)
        engine = open_engine(server)
        server.likes = lambda _: share
        [score] = engine.score([engine.encode(ASKED)])
        assert score.log_odds == sign
        assert score.mass == pytest.approx(0.9)

    def test_two_verdicts_outside_the_list_are_no_vote(self, start, open_engine):
        """Their mass as far as seen is none, which no threshold lets through."""
        server = start(kind="sglang", most_alternatives=5)
        engine = open_engine(server)
        server.mass = 1e-9
        [score] = engine.score([engine.encode(ASKED)])
        assert math.isnan(score.log_odds)
        assert score.mass == 0

    def test_a_prompt_too_long_is_refused_before_it_is_sent(self, start, open_engine):
        """Both numbers are in the message."""
        server = start(context=100)
        engine = open_engine(server)
        with pytest.raises(EngineError, match="100 tokens; this engine takes 1 to 99"):
            engine.score([[1] * 100])
        assert server.asked == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda answer: answer["choices"][0].pop("logprobs") and answer, "no log-probabilities"),
            (lambda answer: answer["usage"].update(prompt_tokens=3) or answer, "cut or changed the prompt"),
            (lambda _: {"nonsense": 1}, "unknown shape"),
        ],
    )
    def test_an_answer_that_cannot_be_trusted_is_an_error(self, start, open_engine, change, words):
        """Missing log-probabilities, a prompt that was cut, and other shapes are each said."""
        server = start()
        engine = open_engine(server)
        server.troubles.append(Trouble(answer=change))
        with pytest.raises(EngineError, match=words) as caught:
            engine.score([engine.encode(ASKED)])
        assert not isinstance(caught.value, EngineGoneError)


class TestGenerating:
    def test_the_verdict_is_read_where_it_was_written(self, start, open_engine):
        """The odds are those of the token after the last opening."""
        server = start(writes="Hm. [[B]]")
        engine = open_engine(server)
        written = engine.generate(engine.encode(Prompt((("user", "Which?"),))), 50)
        assert written.text == "Hm. [[B]]"
        assert written.generated_tokens == 9
        assert written.verdict.log_odds == pytest.approx(odds(server, 0.8)[0])
        assert server.asked[0]["max_tokens"] == 50
        assert server.asked[0]["logprobs"] == 5

    def test_odds_that_are_not_known_are_left_out(self, start, open_engine):
        """A vote comes from the text then."""
        server = start(writes="[[A]]")
        engine = open_engine(server)
        server.likes = lambda _: 1.0
        assert engine.generate(engine.encode(ASKED), 5).verdict is None
        server.writes = "nothing"
        assert engine.generate(engine.encode(ASKED), 7).verdict is None

    def test_generation_ends_at_the_end_of_the_context(self, start, open_engine):
        """No more is asked for than there is room for."""
        server = start(context=100)
        engine = open_engine(server)
        engine.generate([1] * 90, 2048)
        assert server.asked[0]["max_tokens"] == 10


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
from worker.app import open_engine as open_engine_of
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
