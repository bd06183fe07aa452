"""The engine that asks no model: what a load test may rely on."""

import math
import statistics
import threading
import time
from collections.abc import Sequence

import pytest

from worker.engines.base import VERDICT_OPENING, Engine, EngineError, EngineGoneError, Prompt
from worker.engines.simulated import SimulatedEngine


def ask(content: str) -> Prompt:
    """A prompt of one user message, opened at the verdict."""
    return Prompt((("user", content),), VERDICT_OPENING)


def test_it_says_that_it_is_simulated() -> None:
    """Nobody can mistake its verdicts for a model's."""
    engine: Engine = SimulatedEngine()
    assert engine.card.simulated
    assert "no model was asked" in (engine.card.caveat or "")
    assert engine.card.weights.startswith("sha256:")


def test_the_same_prompt_always_gets_the_same_opinion() -> None:
    """Engines of one seed agree to the last digit, whatever the batch; another seed is another judge."""
    one, same, other = SimulatedEngine(seed=1), SimulatedEngine(seed=1), SimulatedEngine(seed=2)
    prompts = [one.encode(ask(content)) for content in ("left", "right")]
    assert one.score(prompts) == [*same.score(prompts[:1]), *same.score(prompts[1:])]
    assert one.score(prompts) != other.score(prompts)
    assert one.card.weights == same.card.weights != other.card.weights


def test_opinions_are_spread_like_a_judges() -> None:
    """Log-odds lie around 0 with a deviation near 2, and nearly all mass is on the two verdicts."""
    engine = SimulatedEngine()
    scores = engine.score([engine.encode(ask(f"question {number}")) for number in range(4000)])
    odds = [score.log_odds for score in scores]
    assert abs(statistics.fmean(odds)) < 0.15
    assert 1.9 < statistics.stdev(odds) < 2.1
    assert all(math.isfinite(value) for value in odds)
    assert all(0.95 <= score.mass <= 1 for score in scores)
    assert max(score.mass for score in scores) - min(score.mass for score in scores) > 0.04
    # Of a logistic distribution: a normal one of this deviation would have 0.7 % beyond.
    assert 0.008 < statistics.fmean(abs(value) > 5.4 for value in odds) < 0.022


def test_orders_and_seeds_have_nothing_to_do_with_each_other() -> None:
    """The same two answers in another order are another prompt, and another seed is another judge, line by line."""
    engine, other = SimulatedEngine(), SimulatedEngine(seed=1)
    lines = [f"question {number:04}" for number in range(4000)]
    one = [engine.encode(ask(f"{line}: the left, or the right one?")) for line in lines]
    turned = [engine.encode(ask(f"{line}: the right one, or the left?")) for line in lines]
    odds, turned_odds, others = (
        [score.log_odds for score in asked.score(prompts)]
        for asked, prompts in ((engine, one), (engine, turned), (other, one))
    )
    assert 0.45 < statistics.fmean(a * b < 0 for a, b in zip(odds, turned_odds, strict=True)) < 0.55
    assert abs(statistics.correlation(odds, turned_odds)) < 0.1
    assert abs(statistics.correlation(odds, others)) < 0.1


def test_an_opinion_belongs_to_a_build() -> None:
    """Verdicts of one build are used again: where opinions change, its number has to."""
    engine = SimulatedEngine()
    [score] = engine.score([engine.encode(ask("Warum? 为什么"))])
    assert (engine.card.engine_build, round(score.log_odds, 6), round(score.mass, 6)) == ("2", 0.686501, 0.952881)


def test_a_step_is_of_the_speed() -> None:
    """A device that takes its time has steps that people can wait for; one that takes none has fewer, larger ones."""
    assert SimulatedEngine(tokens_per_second=1.0).card.step_tokens == 8192
    assert SimulatedEngine().card.step_tokens == 32 * 8192


def test_texts_of_other_alphabets_are_told_apart() -> None:
    """Each has ids of its own, and about as many as its bytes in UTF-8 would be tokens."""
    engine = SimulatedEngine()
    left, right = (engine.encode(ask(text * 100)) for text in ("你好吗, 朋友", "我很好, 谢谢"))
    assert list(left) != list(right)
    assert 425 < len(left) == len(right) < 435


def test_tokens_are_about_four_bytes_and_share_beginnings() -> None:
    """A prompt is as long as with a real tokenizer, and prompts that begin alike have ids that do."""
    engine = SimulatedEngine()
    first, second = engine.encode(ask("x" * 4000 + "left")), engine.encode(ask("x" * 4000 + "right"))
    assert 1000 < len(first) < 1010
    assert first[:1001] == second[:1001]
    assert first != second


def test_no_text_becomes_a_control_token() -> None:
    """Turns and verdicts have ids of their own that no content is given."""
    engine = SimulatedEngine()
    [*_, end, assistant, _] = engine.encode(ask("anything"))
    verdicts = engine.card.verdict_tokens
    reserved = {end, assistant, verdicts.a, verdicts.b}
    assert len(reserved) == 4
    texts = "".join(chr(code) for code in range(0x20, 0xD800))
    assert reserved.isdisjoint(engine.encode(ask(texts))[1:-3])


def test_broken_unicode_is_no_obstacle() -> None:
    """Half of a surrogate pair, which no encoding can hold, still gets ids."""
    assert SimulatedEngine().encode(ask("\ud800"))


def test_it_encodes_fast_enough_to_be_no_bottleneck() -> None:
    """A load test measures the service, so ids come at megabytes a second even on a busy machine."""
    engine = SimulatedEngine()
    content = "The quick brown fox jumps over the dog. " * 25_000
    started = time.thread_time()
    engine.encode(ask(content))
    assert len(content) / (time.thread_time() - started) > 2e6


def test_speed_is_that_of_one_device() -> None:
    """Two threads get no more out of it than one: their prompts pass one after the other."""
    engine = SimulatedEngine(tokens_per_second=10_000)
    prompt = [1] * 1000
    started = time.monotonic()
    threads = [threading.Thread(target=engine.score, args=([prompt],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 0.2
    assert engine.score([prompt])[0].seconds == pytest.approx(0.1)


def test_generation_is_a_verdict_and_nothing_else() -> None:
    """For profiles that write first it writes "[[A]]" or "[[B]]", in accord with its own opinion."""
    engine = SimulatedEngine()
    prompt = engine.encode(Prompt((("system", "Judge."), ("user", "x"))))
    generation = engine.generate(prompt, 100)
    [opinion] = engine.score([prompt])
    assert generation.verdict == opinion
    assert generation.text == ("[[A]]" if opinion.log_odds > 0 else "[[B]]")
    assert generation.generated_tokens == 3
    assert engine.generate(prompt, 1).verdict is None


def test_a_hook_sees_every_prompt_first_and_can_fail_it() -> None:
    """A test can count, wait and break things from outside."""
    seen: list[int] = []

    def hook(prompts: Sequence[Sequence[int]]) -> None:
        seen.append(len(prompts))
        if len(prompts) > 2:
            raise EngineError("too much at once")

    engine = SimulatedEngine(on_score=hook)
    engine.score([[1], [2]])
    engine.generate([1], 5)
    with pytest.raises(EngineError, match="too much"):
        engine.score([[1], [2], [3]])
    assert seen == [2, 1, 3]


def test_limits_are_those_of_any_engine() -> None:
    """A prompt too long, an impossible speed and work after the end are refused."""
    engine = SimulatedEngine(max_prompt_tokens=10)
    with pytest.raises(EngineError, match="11 tokens"):
        engine.score([[1] * 11])
    with pytest.raises(ValueError, match="negative"):
        SimulatedEngine(tokens_per_second=-1)
    assert engine.health()
    engine.close()
    engine.close()
    assert not engine.health()
    with pytest.raises(EngineGoneError):
        engine.score([[1]])


def test_strengths_are_read_from_marks_where_they_are_asked_for() -> None:
    """The difference of two marks is added to the opinion, in the order in which they stand; without, they are text."""
    marked = ask("{{strength=2.5}} against {{strength=-0.5}}")
    turned = ask("{{strength=-0.5}} against {{strength=2.5}}")
    plain, strong = SimulatedEngine(), SimulatedEngine(strengths=True)
    for prompt, difference in ((marked, 3.0), (turned, -3.0), (ask("one {{strength=9}} alone"), 0.0)):
        [without], [with_] = (engine.score([engine.encode(prompt)]) for engine in (plain, strong))
        assert with_.log_odds - without.log_odds == pytest.approx(difference)
    assert plain.card.weights != strong.card.weights
    assert strong.card.simulated
    assert "Simulated" in strong.card.caveat
