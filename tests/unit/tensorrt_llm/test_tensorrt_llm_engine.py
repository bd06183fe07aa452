"""The TensorRT-LLM engine over the strict stand-in: what it asks for, what it reads, and how it fails.

No model runs here, and no GPU: what is proven is the adapter's own part.
"""

import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.court import comparison
from support.gpu import CARD, gpu_host, opened
from support.waiting import wait_until
from tokenizers import Tokenizer

from infra import settings
from infra.engine_folder import read_manifest
from worker import prompts
from worker.engines.base import (
    Engine,
    EngineError,
    EngineGoneError,
    EngineOutOfMemoryError,
    VerdictTokens,
)
from worker.engines.tensorrt_llm.engine import SECONDS_PER_WRITTEN_TOKEN, TensorRtLlmEngine


def asked(engine: Engine, number: int = 1, **changes: Any) -> list[int]:
    """A judge's prompt in token ids, a different one for every number."""
    return list(engine.encode(prompts.build(comparison(prompt=f"Which letter comes {number}th?", **changes), "ab")))


def counts(engine: TensorRtLlmEngine) -> dict[str, int]:
    """What the stand-in's executor has counted."""
    return engine._llm._executor.counts


class TestCard:
    def test_it_says_what_the_manifest_says(self, folder: Path):
        """Model, weights, quantisation and limits are those of the build, and the build itself is named."""
        manifest = read_manifest(folder)
        with opened(folder) as engine:
            judge: Engine = engine
            card = judge.card
            assert judge.health()
        assert not judge.health()
        assert (card.engine, card.model, card.weights) == (
            "tensorrt_llm",
            "Skywork-Critic-Llama-3.1-8B",
            manifest.weights,
        )
        assert card.quantisation == "fp8"
        assert card.engine_build.startswith("1.2.1, sm90, build ")
        assert (card.max_prompt_tokens, card.step_tokens, card.steps_ahead) == (2047, 4096, 2)
        assert not card.simulated

    def test_an_engine_that_was_not_verified_says_so_in_every_verdict(self, folder: Path):
        """Until a verification passed, the card carries a caveat."""
        with opened(folder) as engine:
            assert "has not passed" in (engine.card.caveat or "")

    def test_verdict_tokens_are_those_of_the_folders_tokenizer(self, folder: Path):
        """They are found by writing both verdicts, not assumed."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with opened(folder) as engine:
            assert engine.card.verdict_tokens == VerdictTokens(
                a=tokenizer.token_to_id("A"), b=tokenizer.token_to_id("B")
            )


class TestScore:
    def test_a_slot_adds_up_its_logits_by_itself(self, folder: Path):
        """PyTorch begins a pool of threads for each thread that computes, unless it is told that one does."""
        with opened(folder):
            import torch  # noqa: PLC0415 - the stand-in's

            assert torch.get_num_threads() == 1

    def test_odds_and_mass_are_those_of_the_logits(self, folder: Path):
        """Log-odds are the difference of two logits, and mass their share of a softmax over the whole vocabulary."""
        with opened(folder) as engine:
            prompt = asked(engine)
            [score] = engine.score([prompt])
            row = engine._llm._executor._model.row(engine._llm._executor._model.log_odds(prompt))
        tokens = engine.card.verdict_tokens
        total = sum(math.exp(each) for each in row)
        assert score.log_odds == pytest.approx(row[tokens.a] - row[tokens.b])
        assert score.mass == pytest.approx((math.exp(row[tokens.a]) + math.exp(row[tokens.b])) / total)
        assert score.mass == pytest.approx(0.97)

    def test_a_model_that_would_rather_end_its_turn_is_asked_all_the_same(self, folder: Path):
        """Where the end is the likeliest token, the odds of the two verdicts are read, and their mass is small."""
        with opened(folder, would_end=True) as engine:
            prompt = asked(engine)
            [score] = engine.score([prompt])
            assert score.log_odds == pytest.approx(engine._llm._executor._model.log_odds(prompt))
            assert score.mass < 0.5
            assert engine.health()

    def test_answers_come_in_the_order_of_the_prompts(self, folder: Path):
        """A call of many prompts gives what a call for each would."""
        with opened(folder, tokens_per_second=100_000) as engine:
            many = [asked(engine, number) for number in range(30)]
            together = [score.log_odds for score in engine.score(many)]
            assert together == [engine.score([prompt])[0].log_odds for prompt in many]
            assert counts(engine)["in_flight_most"] > 8

    def test_nothing_is_decoded_and_one_token_is_asked_for(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """Ids go in as a list, with end and padding given, so that the library needs no tokenizer."""
        with opened(folder) as engine:
            seen = []
            original = engine._llm.generate_async

            def spy(inputs: Any, params: Any, **given: Any) -> Any:
                seen.append((inputs, params, given))
                return original(inputs, params, **given)

            monkeypatch.setattr(engine._llm, "generate_async", spy)
            prompt = asked(engine)
            engine.score([tuple(prompt)], salt="tenant")
            [(inputs, params, given)] = seen
            end = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|eot_id|>")
        assert inputs == prompt
        assert (params.max_tokens, params.top_k, params.detokenize, params.return_generation_logits) == (
            1,
            1,
            False,
            True,
        )
        assert params.end_id == params.pad_id == end
        assert given == {"streaming": False, "cache_salt": "tenant"}

    @pytest.mark.parametrize("length", [0, 2048])
    def test_a_prompt_that_does_not_fit_is_refused_before_it_is_submitted(self, folder: Path, length: int):
        """The limit is the engine's own, with one place for the token after the prompt."""
        with opened(folder) as engine:
            with pytest.raises(EngineError, match="takes 1 to 2047"):
                engine.score([[5] * length])
            assert counts(engine)["requests"] == 0
            assert engine.score([[5] * 2047])

    def test_what_was_computed_is_used_again_within_a_tenant_alone(self, folder: Path):
        """The same prompt is reused under the same salt and computed anew under another."""
        with opened(folder) as engine:
            prompt = asked(engine)
            engine.score([prompt], salt="one")
            assert counts(engine)["reused"] == 0
            engine.score([prompt], salt="two")
            assert counts(engine)["reused"] == 0
            engine.score([prompt], salt="one")
            assert counts(engine)["reused"] == len(prompt) // 32

    def test_reuse_can_be_switched_off(self, folder: Path):
        """Then nothing is reused, for odds that are more nearly the same each time."""
        with gpu_host():
            engine = TensorRtLlmEngine(folder, prompt=CARD, reuse=False)
            prompt = asked(engine)
            engine.score([prompt, prompt, prompt])
            assert counts(engine)["reused"] == 0
            engine.close()

    def test_seconds_add_up_to_the_time_in_which_the_gpu_was_in_use(self, folder: Path):
        """What is in flight at once shares the time, by tokens."""
        with opened(folder, tokens_per_second=5_000) as engine:
            many = [asked(engine, number) for number in range(16)]
            began = time.monotonic()
            scores = engine.score(many)
            elapsed = time.monotonic() - began
        assert 0.5 * elapsed < sum(score.seconds for score in scores) <= elapsed

    def test_threads_get_their_own_answers_and_no_number_is_given_out_twice(self, folder: Path):
        """From 32 threads at once, each prompt gets the odds that it gets alone."""
        with opened(folder) as engine:
            many = [asked(engine, number) for number in range(320)]
            found: dict[int, float] = {}

            def work(start: int) -> None:
                for number in range(start, len(many), 32):
                    found[number] = engine.score([many[number]])[0].log_odds

            threads = [threading.Thread(target=work, args=(start,)) for start in range(32)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            model = engine._llm._executor._model
            assert [found[number] for number in range(320)] == pytest.approx([model.log_odds(each) for each in many])
            assert counts(engine)["duplicate_ids"] == 0

    def test_without_the_lock_numbers_would_be_given_out_twice(self, folder: Path):
        """The stand-in gives out numbers as carelessly as the library does, so the test above can fail."""

        class NoLock:
            def __enter__(self) -> None:
                """Nothing is held."""

            def __exit__(self, *_: object) -> None:
                """Nothing is let go."""

        with opened(folder, timeout=0.5) as engine:
            engine._submission = NoLock()
            prompt = asked(engine)

            def work() -> None:
                with suppress(EngineError):  # of who waits for a request that was overwritten by another's
                    engine.score([prompt] * 20)

            threads = [threading.Thread(target=work) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert counts(engine)["duplicate_ids"] > 0


class TestGenerate:
    def test_the_model_writes_and_the_odds_at_its_verdict_are_read(self, folder: Path):
        """The text comes without control tokens, and the verdict's odds by a second pass over what was written."""
        with opened(folder) as engine:
            prompt = asked(engine)[: -len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("[[").ids)]
            written = engine.generate(prompt, 100)
            vote = "A" if engine._llm._executor._model.log_odds(prompt) > 0 else "B"
        assert written.text == f"The answer is clear. [[{vote}]]"
        assert written.verdict is not None
        assert (written.verdict.log_odds > 0) == (vote == "A")
        assert written.verdict.mass == pytest.approx(0.97)

    def test_it_takes_no_longer_than_the_settings_allow_for(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        """Text and odds have one deadline, which the longest text puts no later than the settings reckon with."""
        deadlines = []
        with opened(folder) as engine:
            run = engine._run

            def spy(*arguments: Any) -> Any:
                deadlines.append(arguments[-1])
                return run(*arguments)

            monkeypatch.setattr(engine, "_run", spy)
            assert engine.generate(asked(engine), 100).verdict is not None
        assert len(deadlines) == 2
        assert deadlines[0] == deadlines[1]
        [(_, writing)] = settings._ENGINE_TIMES["tensorrt_llm"]
        assert writing >= prompts.MAX_GENERATED_TOKENS * SECONDS_PER_WRITTEN_TOKEN

    def test_a_text_cut_short_has_no_verdict(self, folder: Path):
        """With too few tokens there is no opening, and no odds are made up."""
        with opened(folder) as engine:
            written = engine.generate(asked(engine), 3)
        assert written.generated_tokens == 3
        assert written.verdict is None


class TestFailures:
    def test_a_refused_request_fails_its_step_alone(self, folder: Path):
        """A RequestError is an EngineError: the step is tried again, and the engine goes on."""
        with opened(folder, refuse_every=3) as engine:
            prompt = asked(engine)
            with pytest.raises(EngineError, match="refused the prompt") as caught:
                engine.score([prompt, prompt, prompt])
            assert not isinstance(caught.value, EngineGoneError)
            assert engine.health()
            assert engine.score([prompt])

    def test_too_little_memory_for_a_step_is_told_apart(self, folder: Path):
        """CUDA's `out of memory` says that fewer prompts may fit, and the engine goes on."""
        with opened(folder, room_for=2, tokens_per_second=50_000) as engine:
            prompt = asked(engine)
            with pytest.raises(EngineOutOfMemoryError, match="too little memory"):
                engine.score([prompt] * 8)
            assert engine.health()
            assert len(engine.score([prompt])) == 1

    def test_an_executor_that_died_of_too_little_memory_is_gone(self, folder: Path):
        """The step learns of the memory; whoever asks next, in halves too, learns that the engine is of no more use."""
        with opened(folder, room_for=2, dies_of_it=True, tokens_per_second=50_000) as engine:
            prompt = asked(engine)
            with pytest.raises(EngineOutOfMemoryError):
                engine.score([prompt] * 8)
            with pytest.raises(EngineGoneError):
                engine.score([prompt])

    def test_a_late_request_is_called_off_and_the_engine_goes_on(self, folder: Path):
        """`queue.Empty` aborts what the step has in flight; another was answered, so the engine is well."""
        with opened(folder, timeout=2.0, late_beyond=1000) as engine:
            with pytest.raises(EngineError, match="not done in time") as caught:
                engine.score([[5] * 1001, [5] * 1002, asked(engine)])
            assert not isinstance(caught.value, EngineGoneError)
            assert engine.health()
            assert counts(engine)["aborted"] == 2

    def test_an_engine_that_answers_nothing_is_gone(self, folder: Path):
        """Nothing at all for as long as a call may take is no lateness, and the process has to end."""
        with opened(folder, timeout=1.0, hang_after=1) as engine:
            prompt = asked(engine)
            assert engine.score([prompt])
            with pytest.raises(EngineGoneError, match="answered nothing"):
                engine.score([prompt])
            assert not engine.health()

    def test_an_engine_on_a_broken_device_is_gone_for_everybody(self, folder: Path):
        """The library says so by refusing each request; in flight or after, all learn that the engine is no use."""
        with opened(folder, die_after=2) as engine:
            prompt = asked(engine)
            with pytest.raises(EngineGoneError, match=r"executor has failed \(RequestError\)"):
                _ask_often(engine, prompt)
            with pytest.raises(EngineGoneError):
                engine.score([prompt])
            assert not engine.health()

    def test_an_error_of_the_library_is_not_quoted(self, folder: Path):
        """What it says could hold anything, so its kind alone is passed on."""
        with opened(folder, die_after=1) as engine:
            with pytest.raises(EngineGoneError) as caught:
                _ask_often(engine, asked(engine))
            assert "illegal memory access" not in str(caught.value)

    def test_logits_of_another_shape_end_the_engine(self, folder: Path):
        """An answer that cannot be read is no verdict, and trying again would not help."""
        with opened(folder, odd_shape=True) as engine, pytest.raises(EngineGoneError, match="shape"):
            engine.score([asked(engine)])

    def test_a_closed_engine_takes_nothing(self, folder: Path):
        """After the end there is no work."""
        with opened(folder) as engine:
            prompt = asked(engine)
        with pytest.raises(EngineGoneError):
            engine.score([prompt])


def _ask_often(engine: TensorRtLlmEngine, prompt: Sequence[int]) -> None:
    for _ in range(50):
        engine.score([prompt] * 5)


class TestStatistics:
    def test_they_are_taken_off_the_librarys_queue(self, folder: Path):
        """The queue, which has no end, is emptied, and the numbers are kept."""
        with opened(folder) as engine:
            for number in range(40):
                engine.score([asked(engine, number)])
            wait_until(lambda: engine.statistics.snapshot()["iterations"] == 40, within=60, what="all are taken")
            numbers = engine.statistics.snapshot()
            assert engine._llm._executor.stats.qsize() == 0
        assert numbers["gpu_memory_bytes"] == 2**30
        assert numbers["blocks_reused"] > 0

    def test_they_are_not_asked_for_before_there_was_a_prompt(self, folder: Path):
        """An idle engine leaves the log alone: the library prints a line for each look that comes too early."""

        class Turns(threading.Event):
            taken = 0

            def wait(self, timeout: float | None = None) -> bool:
                """Count, and wait hardly at all."""
                self.taken += 1
                return super().wait(0.01)

        with opened(folder) as engine:
            engine._closing = turns = Turns()
            wait_until(lambda: turns.taken > 3, within=60, what="the thread goes round")
            assert counts(engine)["looks_before"] == 0

    def test_statistics_that_make_no_sense_end_nothing(self, folder: Path):
        """Their keys are not promised: what cannot be read is passed over, and the queue does not grow."""
        with opened(folder) as engine:
            engine._llm._executor.stats.put({"kvCacheStats": "another form"})
            engine.score([asked(engine)])
            wait_until(engine._llm._executor.stats.empty, within=60, what="it is taken")

            def goes_on() -> bool:
                engine.score([asked(engine)])
                return engine.statistics.snapshot()["iterations"] > 0

            wait_until(goes_on, within=60, what="others are taken")
