"""The engine for OpenAI-compatible servers as it opens, against servers that speak as each kind does."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.model_server import ASKED, ModelServer, odds, serving, toy_tokenizer, write_tokenizer
from tokenizers import Tokenizer, decoders

from infra import settings
from schemas.problems import Problem
from worker.engines.base import Engine
from worker.engines.chat import VerdictTokenError
from worker.engines.openai_server import OpenAIServerEngine, UnusableServerError
from worker.opening import open_engine as open_engine_of

KINDS = ("vllm", "sglang", "tensorrt_llm", "somebody")


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
