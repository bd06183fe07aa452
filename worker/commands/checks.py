"""The checks of `nightcourt engine verify`: an engine is held to the model that it was built from.

| check | passes if |
|---|---|
| verdict_tokens | "A" and "B" after "[[" are one token each; for a Llama 3 tokenizer 32 and 33 after 15873 |
| parity | by length: log-odds differ from bf16's by no more than the tolerance, and votes agree where bf16 is sure |
| agreement | nearly all probability is on A and B, and both orders of a pair agree more often than chance has it |
| throughput | the engine does not fail; tokens and judgements a second, against the roof of the GPU |
| soak | no failure, no growth of memory, and a prompt asked again and again gets the same odds |

The tolerances were set before anything was measured, from what each number format can do. They are no results.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.roofline import operations_per_token, roof_tokens_per_second
from schemas.engine import Manifest, Quantisation, VerifyOrder
from schemas.problems import ENGINE_UNFIT, Problem
from worker import ballots
from worker.commands.bench import steps_of
from worker.commands.load import Step, drive
from worker.commands.pairs import Pair, both_within
from worker.commands.saying import Say
from worker.engines.base import Engine, Score, VerdictTokens, is_number


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far log-odds may be from bf16's: the median and the 95th percentile of absolute differences."""

    median: float
    p95: float


TOLERANCES: dict[Quantisation, Tolerance] = {
    "bf16": Tolerance(0.10, 0.35),
    "fp16": Tolerance(0.10, 0.35),
    "fp8": Tolerance(0.30, 1.00),
    "int4_awq": Tolerance(0.60, 2.00),
}
SURE = 1.0
"""Log-odds from which on bf16 is sure, so that votes have to agree."""
LEAST_VOTES = 0.99
"""Of the sure prompts, how many have to get the same vote."""
LEAST_MASS = 0.90
"""What the median prompt has to put on A and B together."""
LEAST_AGREEMENT = 0.60
"""How many pairs have to get the same winner in both orders: chance has half. Of fewer than a hundred pairs, more have
to: two standard errors above chance."""
MOST_GROWTH = 256 * 1024 * 1024
"""Bytes that the soak may add to the memory in use, after its first tenth."""
MOST_DRIFT = 0.35
"""How far the odds of a prompt may move while it is asked again: reuse and batches move them by up to .16."""
THROUGHPUT_LENGTHS = (1024, 2048, 4096)
_ASK_AGAIN_EVERY = 500
_SAMPLE_EVERY = 100


class Reference(BaseModel):
    """What the model itself says of prompts: the parity check's other side, kept so that it can be used again."""

    model_config = ConfigDict(frozen=True)

    weights: str
    tokenizer: str
    prompts: dict[int, list[list[int]]]
    """Token ids, by the length that was asked for."""
    log_odds: dict[int, list[float]]


def check_tokens(engine: Engine, opening: Sequence[int]) -> dict[str, Any]:
    """State the verdict's ids. That they are right was a condition of loading the engine at all."""
    tokens = engine.card.verdict_tokens
    return {"passed": True, "opening": list(opening), "a": tokens.a, "b": tokens.b}


def check_parity(engine: Engine, reference: Reference, quantisation: Quantisation, say: Say) -> dict[str, Any]:
    """Compare log-odds with the reference's, length by length."""
    tolerance = TOLERANCES[quantisation]
    lengths = {}
    for length, prompts in reference.prompts.items():
        say(f"parity at {length} tokens: {len(prompts)} prompts")
        said = [engine.score([prompt])[0].log_odds for prompt in prompts]
        lengths[str(length)] = compare(said, reference.log_odds[length], tolerance)
    # Where bf16 was never sure, no vote was compared.
    sure = any(each["sure_prompts"] for each in lengths.values())
    passed = sure and all(each["passed"] for each in lengths.values())
    return {"passed": passed, "tolerance": asdict(tolerance), "sure_from": SURE, "lengths": lengths}


def compare(said: Sequence[float], expected: Sequence[float], tolerance: Tolerance) -> dict[str, Any]:
    """Compare log-odds, prompt by prompt. What is no number fails."""
    numbers = [(one, other) for one, other in zip(said, expected, strict=True) if math.isfinite(one)]
    differences = sorted(abs(one - other) for one, other in numbers)
    sure = [(one, other) for one, other in numbers if abs(other) >= SURE]
    same = sum((one > 0) == (other > 0) for one, other in sure)
    votes = same / len(sure) if sure else None
    report = {
        "prompts": len(said),
        "no_numbers": len(said) - len(numbers),
        "sure_prompts": len(sure),
        "sure_votes_agree": votes,
    }
    if not said or len(numbers) < len(said):
        return {"passed": False, **report}
    median, p95 = statistics.median(differences), differences[min(len(differences) - 1, int(0.95 * len(differences)))]
    return {
        "passed": median <= tolerance.median and p95 <= tolerance.p95 and (votes is None or votes >= LEAST_VOTES),
        **report,
        "difference_median": median,
        "difference_p95": p95,
        "difference_largest": differences[-1],
    }


def check_agreement(engine: Engine, pairs: Sequence[Pair], in_flight: int, say: Say) -> dict[str, Any]:
    """Judge a file of pairs in both orders: how often they agree, and with the labels where the file has some."""
    limit = engine.card.max_prompt_tokens
    steps = {}
    for pair in pairs:
        ids = both_within(pair.comparison, engine.encode, limit)
        if ids is not None:
            steps[id(ids)] = (ids, pair.label)
    say(f"agreement of both orders: {len(steps)} pairs")
    counted = _Agreement(labels={key: label for key, (_, label) in steps.items()})
    drive(engine, iter([ids for ids, _ in steps.values()]), threads=in_flight, on_scores=counted.count)
    return {"pairs": len(steps), "too_long": len(pairs) - len(steps), **counted.report()}


@dataclass
class _Agreement:
    labels: dict[int, str | None]
    masses: list[float] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)
    no_numbers: int = 0
    consistent: int = 0
    right: int = 0
    labelled: int = 0

    def count(self, step: Step, scores: Sequence[Score]) -> None:
        if not all(map(is_number, scores)):
            self.no_numbers += 1
            return
        cast = [ballots.ballot(*each) for each in zip(("ab", "ba"), *zip(*_odds(scores), strict=True), strict=True)]
        tally = ballots.count(cast, temperature=1.0, tie_margin=None)
        self.masses += [score.mass for score in scores]
        self.biases.append(tally["position_bias"] or 0.0)
        self.consistent += bool(tally["consistent"])
        label = self.labels[id(step)]
        if label is not None:
            self.labelled += 1
            self.right += tally["winner"] == label

    def report(self) -> dict[str, Any]:
        judged = len(self.biases)
        mass = statistics.median(self.masses) if self.masses else 0.0
        share = self.consistent / judged if judged else 0.0
        return {
            "passed": judged > 0
            and not self.no_numbers
            and mass >= LEAST_MASS
            and share >= max(LEAST_AGREEMENT, 0.5 + judged**-0.5),
            "no_numbers": self.no_numbers,
            "mass_median": mass,
            "mass_smallest": min(self.masses, default=0.0),
            "orders_agree": share,
            "position_bias_mean": statistics.fmean(self.biases) if self.biases else None,
            "labelled": self.labelled,
            "accuracy": self.right / self.labelled if self.labelled else None,
        }


def _odds(scores: Sequence[Score]) -> list[tuple[float, float]]:
    return [(score.log_odds, score.mass) for score in scores]


def measure(
    engine: Engine, pairs: Sequence[Pair], manifest: Manifest, tflops: float | None, order: VerifyOrder, say: Say
) -> dict[str, Any]:
    """Measure throughput by length, and set it against the roof that the GPU's peak puts on reading prompts.

    All of them begin alike, with the judge's instructions, and the roof is that of computing every token. So each is a
    call of its own, with nothing used again.
    """
    measured = {}
    for length in [each for each in THROUGHPUT_LENGTHS if each <= engine.card.max_prompt_tokens]:
        say(f"throughput at {length} tokens for {order.seconds:g} s")
        singles = ([prompt] for step in steps_of(engine, pairs, length) for prompt in step)
        threads = 2 * order.in_flight
        drive(engine, itertools.islice(singles, 8), threads=8, apart=True)
        ready = list(itertools.islice(singles, threads))
        load = drive(engine, itertools.chain(ready, singles), threads=threads, seconds=order.seconds, apart=True)
        rates = load.rates()
        tokens = rates["tokens_per_judgement"]
        roof = roof_tokens_per_second(manifest.shape, tokens, tflops) if tflops and tokens else None
        measured[str(length)] = {
            **rates,
            "operations_per_token": operations_per_token(manifest.shape, tokens),
            "roof_tokens_per_second": roof,
            "share_of_roof": rates["tokens_per_second"] / roof if roof else None,
        }
    return {"passed": True, "peak_tflops": tflops, "in_flight": order.in_flight, "lengths": measured}


def soak(engine: Engine, pairs: Sequence[Pair], order: VerifyOrder, memory: "Memory", say: Say) -> dict[str, Any]:
    """Ask many thousands of prompts and watch the memory; among them one prompt again and again.

    Raises:
        EngineError: the engine failed: the soak is over.
    """
    say(f"soak: {order.soak} prompts; memory is watched")
    steps = steps_of(engine, pairs, None)
    probe = next(steps)
    watch = _Watch(probe, order.soak, memory)
    load = drive(engine, watch.mixed(steps), threads=order.in_flight, on_scores=watch.look)
    return {"prompts": load.prompts, **load.rates(), **watch.report()}


class Memory:
    """The memory in use, in bytes: this process', and the GPU's."""

    def resident(self) -> int:
        """Of this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def gpu(self) -> int:
        """Of the GPU."""
        from worker.engines.tensorrt_llm.gpu import memory_in_use  # noqa: PLC0415 - torch

        return memory_in_use()


@dataclass
class _Watch:
    """Looks at what comes back during the soak."""

    probe: Step
    prompts: int
    memory: Memory
    answered: int = 0
    no_numbers: int = 0
    probed: list[float] = field(default_factory=list)
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    """Prompts answered, bytes of this process, bytes of the GPU."""

    def mixed(self, steps: Iterator[Step]) -> Iterator[Step]:
        given = 0
        for number, step in enumerate(steps):
            if given >= self.prompts:
                return
            chosen = self.probe if number % (_ASK_AGAIN_EVERY // 2) == 0 else step
            given += len(chosen)
            yield chosen

    def look(self, step: Step, scores: Sequence[Score]) -> None:
        before = self.answered
        self.answered += len(scores)
        self.no_numbers += sum(not is_number(score) for score in scores)
        if step is self.probe and is_number(scores[0]):
            self.probed.append(scores[0].log_odds)
        if before // _SAMPLE_EVERY != self.answered // _SAMPLE_EVERY:
            self.samples.append((self.answered, self.memory.resident(), self.memory.gpu()))

    def report(self) -> dict[str, Any]:
        settled = [sample for sample in self.samples if sample[0] >= self.prompts * 0.1]
        growth = [settled[-1][which] - settled[0][which] if settled[1:] else None for which in (1, 2)]
        drift = max(self.probed) - min(self.probed) if self.probed[1:] else None
        return {
            "passed": all(each is not None and each <= MOST_GROWTH for each in growth)
            and not self.no_numbers
            and drift is not None
            and drift <= MOST_DRIFT,
            "no_numbers": self.no_numbers,
            "memory_growth_bytes": growth[0],
            "gpu_memory_growth_bytes": growth[1],
            "growth_allowed_bytes": MOST_GROWTH,
            "asked_again": len(self.probed),
            "odds_drift": drift,
            "odds_drift_allowed": MOST_DRIFT,
        }


def compute_reference(
    checkpoint: Path, prompts: dict[int, list[list[int]]], tokens: VerdictTokens, say: Say
) -> dict[int, list[float]]:
    """Let the model itself say its log-odds, in a process of its own, so that the GPU's memory is free afterwards.

    Raises:
        Problem: it could not; the detail says why as far as the process told.
    """
    say(f"the reference: bf16 by transformers, {sum(map(len, prompts.values()))} prompts, one at a time")
    with tempfile.TemporaryDirectory(prefix="nightcourt-") as folder:
        asked, answer = Path(folder) / "asked.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps({"checkpoint": str(checkpoint), "prompts": prompts, "a": tokens.a, "b": tokens.b}))
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "worker.commands", "reference", str(asked), str(answer)], check=False
        )
        if ended.returncode != 0 or not answer.is_file():
            raise Problem(
                ENGINE_UNFIT,
                f"The reference could not be computed (status {ended.returncode}); the lines above say why. It takes "
                "about 20 GB of free GPU memory for an 8B model: nothing else may run on the GPU.",
            )
        return {int(length): odds for length, odds in json.loads(answer.read_bytes()).items()}
