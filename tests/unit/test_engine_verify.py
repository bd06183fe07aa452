"""Verifying and measuring an engine: a good one passes, and each fault is found by the check that is for it."""

import _thread
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import make_checkpoint, write_pairs
from support.gpu import build_engine, gpu_host, opened
from support.waiting import wait_until

from infra.engine_folder import REPORT, build_of, is_verified, read_manifest
from infra.settings import Settings
from schemas.engine import BenchOrder, VerifyOrder
from schemas.problems import Problem
from worker.commands import checks
from worker.commands import verify as verifying
from worker.commands.bench import bench, steps_of
from worker.commands.checks import Reference, Tolerance, compare
from worker.commands.load import drive
from worker.commands.pairs import both_orders, of_length, read_pairs
from worker.commands.verify import unfit, verify
from worker.engines.base import EngineError, Prompt, Score
from worker.engines.simulated import SimulatedEngine
from worker.engines.tensorrt_llm.device_time import DeviceTime
from worker.engines.tensorrt_llm.engine import TensorRtLlmEngine


def nobody(_: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A room with a checkpoint, pairs and an engine."""
    room = tmp_path_factory.mktemp("verify")
    build_engine(room, pairs=40, max_batch_size=32, max_num_tokens=8192, max_seq_len=2048)
    return room


@pytest.fixture
def proof(built: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Verify the engine, quickly, on a host that behaves in some way."""

    def run(behaviour: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        plain = {
            "folder": built / "engine",
            "checkpoint": str(built / "Skywork-Critic-Llama-3.1-8B"),
            "pairs": built / "pairs.jsonl",
            "per_length": 6,
            "lengths": (600, 1500),
            "soak": 600,
            "seconds": 0.2,
            "in_flight": 8,
            "report": tmp_path / "report.json",
        }
        with gpu_host(**(behaviour or {})):
            return verify(VerifyOrder(**{**plain, **changes}), Settings(engine_timeout_seconds=5), nobody)

    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the tests ask be enough for a mark: so much as the command asks takes minutes."""
    monkeypatch.setattr(verifying, "LEAST_LENGTHS", (600, 1500))
    monkeypatch.setattr(verifying, "LEAST_PROMPTS", 6)
    monkeypatch.setattr(verifying, "LEAST_SOAK", 600)


class TestWhole:
    @pytest.mark.usefixtures("small")
    def test_a_good_engine_passes_and_is_marked(self, built: Path, proof: Any, tmp_path: Path):
        """All checks pass, the report says with which figures, and the folder is marked as verified for this build."""
        report = proof()
        folder = built / "engine"
        manifest = read_manifest(folder)
        assert report["passed"], report["checks"]
        assert unfit(report) is None
        assert json.loads((tmp_path / "report.json").read_text()) == report
        assert report["build"] == build_of(manifest)
        assert set(report["checks"]) == {"verdict_tokens", "parity", "agreement", "throughput", "soak"}
        parity = report["checks"]["parity"]["lengths"]
        assert {length: each["prompts"] for length, each in parity.items()} == {"600": 6, "1500": 6}
        agreement = report["checks"]["agreement"]
        assert (agreement["pairs"], agreement["labelled"]) == (40, 20)
        assert agreement["mass_median"] == pytest.approx(0.97)
        throughput = report["checks"]["throughput"]["lengths"]["1024"]
        assert 0.95 * 1024 <= throughput["tokens_per_judgement"] <= 1024 + 16
        assert throughput["share_of_roof"] == pytest.approx(
            throughput["tokens_per_second"] / throughput["roof_tokens_per_second"]
        )
        soaked = report["checks"]["soak"]
        assert soaked["prompts"] >= 600
        assert soaked["asked_again"] >= 2
        assert is_verified(folder, manifest)
        assert not is_verified(folder, manifest.model_copy(update={"built_at": "another day"}))
        (folder / REPORT).unlink()

    @pytest.mark.usefixtures("small")
    @pytest.mark.parametrize("less", [{"per_length": 5}, {"soak": 599}])
    def test_a_smaller_verification_passes_and_marks_nothing(self, built: Path, proof: Any, less: dict[str, Any]):
        """A glance at an engine takes no caveat from its verdicts."""
        assert proof(**less)["passed"]
        assert not (built / "engine" / REPORT).exists()

    @pytest.mark.usefixtures("small")
    def test_short_prompts_that_were_made_for_a_length_mark_nothing(self, built: Path, proof: Any, tmp_path: Path):
        """A reference of a build that took no longer ones is enough to pass, and not for the mark."""
        proof(soak=0)
        kept = tmp_path / "nightcourt-reference.json"
        reference = Reference.model_validate_json(kept.read_text())
        for of in (reference.prompts, reference.log_odds):
            of[1500] = of[600]
        kept.write_text(reference.model_dump_json())
        assert proof(checkpoint=None, reference=kept)["passed"]
        assert not (built / "engine" / REPORT).exists()

    def test_an_engine_that_breaks_as_it_ends_loses_no_report(self, proof: Any, tmp_path: Path):
        """What was found is written down before."""
        with pytest.raises(RuntimeError, match="as it ends"):
            proof({"break_at_end": True}, soak=0)
        assert json.loads((tmp_path / "report.json").read_text())["checks"]["parity"]["passed"]

    def test_an_engine_that_says_something_else_fails_parity(self, built: Path, proof: Any):
        """Log-odds that are off by more than the tolerance are found, and the folder is not marked."""
        report = proof({"shift": 0.5})
        assert report["checks"]["parity"]["passed"] is False
        assert report["checks"]["parity"]["lengths"]["600"]["difference_median"] == pytest.approx(0.5)
        assert not report["passed"]
        assert "parity" in unfit(report).detail
        assert not (built / "engine" / REPORT).exists()

    def test_a_verification_that_fails_takes_the_mark_of_an_earlier_one(self, built: Path, proof: Any):
        """What passed on one day and not on another is not verified."""
        (built / "engine" / REPORT).write_text(f'{{"build": "{build_of(read_manifest(built / "engine"))}"}}')
        assert is_verified(built / "engine", read_manifest(built / "engine"))
        proof({"shift": 0.5}, soak=0)
        assert not is_verified(built / "engine", read_manifest(built / "engine"))

    def test_an_engine_that_goes_wrong_on_long_prompts_fails_at_their_length(self, proof: Any):
        """Short prompts pass, long ones do not, and the report says which."""
        lengths = proof({"wrong_beyond": 1000})["checks"]["parity"]["lengths"]
        assert (lengths["600"]["passed"], lengths["1500"]["passed"]) == (True, False)

    def test_a_reference_is_kept_and_can_be_used_again(self, proof: Any, tmp_path: Path):
        """The second verification needs no checkpoint, and asks the very same prompts."""
        first = proof(soak=0)
        again = proof(soak=0, checkpoint=None, reference=tmp_path / "nightcourt-reference.json")
        assert first["checks"]["parity"]["passed"]
        assert again["checks"]["parity"]["lengths"] == first["checks"]["parity"]["lengths"]

    def test_without_the_soak_an_engine_is_not_marked(self, built: Path, proof: Any):
        """A check that was left out has not passed, and has not failed."""
        report = proof(soak=0)
        assert not report["passed"]
        assert unfit(report) is None
        assert not (built / "engine" / REPORT).exists()

    def test_a_report_that_cannot_be_written_is_told_instead(self, proof: Any, tmp_path: Path):
        """Half an hour of work is not lost over a folder that is not there."""
        kept = tmp_path / "nightcourt-reference.json"
        proof(soak=0)
        with pytest.raises(Problem, match=r'No such file or directory. The report was: \{\s+"build"'):
            proof(soak=0, checkpoint=None, reference=kept, report=tmp_path / "nowhere" / "report.json")

    @pytest.mark.parametrize("differing", [{"weights": b"other noise"}, {"rope_scaling": {"factor": 8.0}}])
    def test_another_checkpoint_is_no_reference(self, proof: Any, tmp_path: Path, differing: dict[str, Any]):
        """The reference has to be the model that the engine was built from."""
        other = make_checkpoint(tmp_path / "other", **differing)
        with pytest.raises(Problem, match="other weights"):
            proof(checkpoint=str(other))

    def test_an_engine_that_fails_loses_no_figures(self, proof: Any, tmp_path: Path):
        """The check at which it failed says why, those after it too, and the report has what was found before."""
        report = proof({"die_after": 95})  # after 12 prompts for parity and 80 for agreement
        found = report["checks"]
        assert (found["parity"]["passed"], found["agreement"]["passed"]) == (True, True)
        assert (found["throughput"]["passed"], found["soak"]["passed"]) == (False, False)
        assert "executor has failed" in found["throughput"]["reason"]
        assert "throughput, soak" in unfit(report).detail
        assert json.loads((tmp_path / "report.json").read_text()) == report


class TestCompare:
    def test_differences_within_the_tolerance_pass(self):
        """Median and 95th percentile are of absolute differences."""
        found = compare([1.1, -2.0, 0.3], [1.0, -2.2, 0.3], Tolerance(0.11, 0.35))
        assert found["passed"]
        assert found["difference_median"] == pytest.approx(0.1)
        assert found["difference_largest"] == pytest.approx(0.2)
        assert (found["sure_prompts"], found["sure_votes_agree"]) == (2, 1.0)

    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            ([1.3, 1.3, 1.3], [1.0, 1.0, 1.0]),
            ([1.0, 1.0, 2.0], [1.0, 1.0, 1.0]),
            ([float("nan")] * 3, [1.0, 1.0, 1.0]),
            ([-2.0] * 9 + [float("nan")] + [-2.0] * 6, [-2.0] * 16),
        ],
    )
    def test_differences_beyond_it_do_not(self, said: Sequence[float], expected: Sequence[float]):
        """Many small ones, one large one, and what is no number."""
        assert not compare(said, expected, Tolerance(0.1, 0.35))["passed"]

    def test_a_vote_that_flips_where_bf16_is_sure_fails(self):
        """Even where the odds are within a wide tolerance."""
        assert not compare([-0.1] * 3, [1.1] * 3, Tolerance(2.0, 2.0))["passed"]
        assert compare([-0.1] * 3, [0.1] * 3, Tolerance(2.0, 2.0))["passed"]

    def test_where_nothing_was_sure_nothing_was_compared(self):
        """Without one prompt that the model is sure of no vote was looked at, and that is no pass."""
        asked = [[number] * 9 for number in range(20)]
        for engine, passes in ((SimulatedEngine(), True), (Unsure(), False)):
            said = [score.log_odds for score in engine.score(asked)]
            reference = Reference(weights="", tokenizer="", prompts={9: asked}, log_odds={9: said})
            assert checks.check_parity(engine, reference, "bf16", nobody)["passed"] is passes

    def test_a_length_without_prompts_does_not_pass(self):
        """There is nothing that could differ."""
        assert not compare([], [], Tolerance(2.0, 2.0))["passed"]


class Unsure(SimulatedEngine):
    """An engine that is never sure."""

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Say hardly anything."""
        return [replace(each, log_odds=each.log_odds / 100) for each in super().score(prompts, salt=salt)]


class TestThroughput:
    def test_every_token_that_is_counted_was_computed(self, built: Path):
        """Against a roof of computing, what was used again would count as speed."""
        order = VerifyOrder(folder=built / "engine", checkpoint="x", pairs=built, seconds=0.2, in_flight=4)
        manifest, pairs = read_manifest(order.folder), read_pairs(built / "pairs.jsonl")
        with gpu_host():
            engine = TensorRtLlmEngine(order.folder, prompt=manifest.prompt)
            measured = checks.measure(engine, pairs, manifest, None, order, nobody)
            counts = engine._llm._executor.counts
            engine.close()
        assert measured["lengths"]["1024"]["judgements"] > 8
        assert counts["computed"] > 0
        assert counts["reused"] == 0


class NotANumber(SimulatedEngine):
    """An engine that says of one prompt in a hundred what is no number."""

    asked = 0

    def score(self, prompts: Sequence[Sequence[int]], *, salt: str = "") -> list[Score]:
        """Say so of the hundredth."""
        NotANumber.asked += 1
        scores = super().score(prompts, salt=salt)
        return [replace(scores[0], log_odds=float("nan")), *scores[1:]] if NotANumber.asked % 100 == 0 else scores


class TestAgreement:
    def test_odds_that_are_no_number_are_counted(self, tmp_path: Path):
        """They agree with nothing, fail the check, and stand in its report as what they are."""
        found = checks.check_agreement(NotANumber(), read_pairs(write_pairs(tmp_path / "p.jsonl", 200)), 1, nobody)
        assert not found["passed"]
        assert found["no_numbers"] == 2

    def test_a_judge_by_chance_does_not_agree_with_itself(self, tmp_path: Path):
        """The simulated engine's orders contradict each other half of the time, and it fails."""
        pairs = read_pairs(write_pairs(tmp_path / "pairs.jsonl", 800))
        found = checks.check_agreement(SimulatedEngine(), pairs, 4, nobody)
        assert found["pairs"] == 800
        assert 0.4 < found["orders_agree"] < 0.6
        assert not found["passed"]


class Growing(checks.Memory):
    """A process that grows by so many bytes at every look, on a GPU that does not."""

    def __init__(self, leak: int) -> None:
        self._leak = leak
        self._looks = 0

    def resident(self) -> int:
        """What is in use of the process."""
        self._looks += 1
        return self._looks * self._leak

    def gpu(self) -> int:
        """What is in use of the GPU."""
        return 0


class TestSoak:
    def test_what_was_looked_at_once_did_not_hold(self, built: Path):
        """With one answer to the prompt that is asked again, and one look at the memory, neither could have moved."""
        order = VerifyOrder(folder=built, checkpoint="x", pairs=built, soak=100, in_flight=4)
        pairs = read_pairs(built / "pairs.jsonl")
        found = checks.soak(SimulatedEngine(), pairs, order, Growing(0), nobody)
        assert (found["asked_again"], found["memory_growth_bytes"], found["odds_drift"]) == (1, None, None)
        assert not found["passed"]

    @pytest.mark.parametrize(("leak", "passes"), [(0, True), (1 << 20, False)])
    def test_memory_that_grows_is_found(self, built: Path, leak: int, passes: bool):
        """A mebibyte more at every look is found, whichever memory it is."""
        order = VerifyOrder(folder=built, checkpoint="x", pairs=built, soak=40_000, in_flight=4)
        found = checks.soak(SimulatedEngine(), read_pairs(built / "pairs.jsonl"), order, Growing(leak), nobody)
        assert found["prompts"] >= 40_000
        assert found["passed"] is passes

    def test_this_process_has_memory(self):
        """The figure is in bytes."""
        assert 10 << 20 < checks.Memory().resident() < 64 << 30


class TestPairs:
    @pytest.mark.parametrize("tokens", [400, 1024, 4096])
    def test_prompts_are_made_nearly_as_long_as_asked(self, built: Path, tokens: int):
        """Within five per cent below, and never above."""
        engine = SimulatedEngine()
        made = of_length(read_pairs(built / "pairs.jsonl"), tokens, engine.encode)
        lengths = [len(both_orders(next(made), engine.encode)[0]) for _ in range(12)]
        assert all(0.94 * tokens <= length <= tokens for length in lengths), lengths

    def test_no_prompt_of_a_measurement_is_asked_twice(self, built: Path):
        """Reuse of a whole prompt would be measured as speed."""
        engine = SimulatedEngine()
        steps = steps_of(engine, read_pairs(built / "pairs.jsonl"), 400)
        asked = [
            bytes(prompt) if isinstance(prompt, bytes) else tuple(prompt) for _ in range(100) for prompt in next(steps)
        ]
        assert len(set(asked)) == 200

    def test_a_pair_too_long_to_be_tokenised_is_left_out(self, built: Path, tmp_path: Path):
        """What the engine refuses by its length alone fails neither a check nor a measurement: it is too long."""
        file = write_pairs(tmp_path / "pairs.jsonl", 40)
        with file.open("a") as out:
            out.write(json.dumps({"prompt": "Why?", "response_a": "word " * 60_000, "response_b": "So."}) + "\n")
        pairs = read_pairs(file)
        with opened(built / "engine") as engine:
            found = checks.check_agreement(engine, pairs, 4, nobody)
            as_they_are, cut = (list(itertools.islice(steps_of(engine, pairs, at), 60)) for at in (None, 1024))
        assert (found["pairs"], found["too_long"]) == (40, 1)
        assert len(as_they_are) == len(cut) == 60
        assert max(len(prompt) for step in cut for prompt in step) <= 1024 + 16

    def test_pairs_that_fit_nowhere_are_refused(self, built: Path):
        """An engine with too little room is told so, and nothing goes round for ever."""
        with pytest.raises(Problem, match="fits into"):
            steps_of(SimulatedEngine(max_prompt_tokens=100), read_pairs(built / "pairs.jsonl"), None)


class FailingAtTexts(SimulatedEngine):
    """An engine that after some texts has no tokenizer any more."""

    left = 1 << 30

    def encode(self, prompt: Prompt) -> bytes:
        """Fail at the first that is too many."""
        self.left -= 1
        if not self.left:
            raise EngineError("there is no tokenizer")
        return super().encode(prompt)


class TestBench:
    def test_it_measures_what_the_engine_does(self, built: Path):
        """An engine that does 50,000 tokens a second is measured at that, and judgements follow from it."""
        order = BenchOrder(pairs=built / "pairs.jsonl", lengths=(500,), seconds=1.0, in_flight=4)
        [found] = bench(SimulatedEngine(tokens_per_second=50_000), order, nobody)["measured"]
        assert found["tokens_per_second"] == pytest.approx(50_000, rel=0.2)
        assert found["judgements_per_second"] == pytest.approx(
            found["tokens_per_second"] / found["tokens_per_judgement"], rel=0.01
        )
        assert found["comparisons_per_second"] == pytest.approx(found["judgements_per_second"] / 2, rel=0.01)

    def test_a_failing_engine_ends_the_load(self, built: Path):
        """The first failure is raised, from whichever thread it came."""

        def fail(_: object) -> None:
            raise EngineError("no more")

        engine = SimulatedEngine(on_score=fail)
        steps = steps_of(engine, read_pairs(built / "pairs.jsonl"), None)
        with pytest.raises(EngineError, match="no more"):
            drive(engine, steps, threads=4, seconds=5)

    def test_an_engine_that_fails_at_a_text_ends_the_load(self, built: Path):
        """A server that tokenises may fail at that: a shorter measurement would be taken for a whole one."""
        engine = FailingAtTexts()
        steps = steps_of(engine, read_pairs(built / "pairs.jsonl"), None)
        engine.left = 20
        with pytest.raises(EngineError, match="no tokenizer"):
            drive(engine, steps, threads=4, seconds=30)

    def test_an_interruption_ends_the_load(self, built: Path):
        """No thread goes on asking, which would keep the program from ending."""
        asked = itertools.count()
        engine = SimulatedEngine(on_score=lambda _: _thread.interrupt_main() if next(asked) == 20 else None)
        steps = steps_of(engine, read_pairs(built / "pairs.jsonl"), None)
        with pytest.raises(KeyboardInterrupt):
            drive(engine, steps, threads=2, seconds=600)
        wait_until(
            lambda: not [each for each in threading.enumerate() if each.name.startswith("load-")],
            within=10,
            what="all end",
        )


class TestDeviceTime:
    def test_time_is_shared_by_tokens_and_adds_up(self):
        """Two in flight share each second as their tokens stand to each other; nobody is charged for idleness."""
        now = 0.0
        meter = DeviceTime(lambda: now)
        now = 5.0
        first = meter.enter(100)
        now = 6.0
        second = meter.enter(300)
        now = 8.0
        assert meter.leave(100, first) == pytest.approx(1.0 + 2.0 * 100 / 400)
        now = 9.0
        assert meter.leave(300, second) == pytest.approx(2.0 * 300 / 400 + 1.0)
