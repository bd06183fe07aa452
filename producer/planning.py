"""How long a night's work takes, and how many GPUs it needs. Pure arithmetic on a rate that says where it is from.

A rate is prompt tokens a second of one GPU. One plan stands on one rate: what was measured, what somebody published and
what the hardware could do at best are never mixed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Literal

from pydantic import BaseModel, Field, PositiveFloat

from infra.roofline import LLAMA_8B, PEAKS, Precision, operations_per_token, roof_tokens_per_second

Kind = Literal["published", "roofline", "measured", "given"]

ORDERS = {"both": 2, "ab": 1, "ba": 1}

# NVIDIA TensorRT-LLM, performance overview for v1.0 (commit 00f37686): output tokens a second of one GPU at 2,048
# tokens in and 128 out, the published row that is most like judging. Llama-3.1-8B-Instruct in FP8, PyTorch backend.
_PUBLISHED_OUTPUT = {"h100": 3450.0, "h200": 3538.0}
_PUBLISHED_IN, _PUBLISHED_OUT = 2048, 128

MOST = 1e12
"""Prompt tokens a second that no GPU comes near, whatever somebody gives or has measured."""


class PlanError(ValueError):
    """There is no such plan; the message says what to give instead."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Prompt tokens a second of one GPU, and where the figure is from."""

    tokens_per_second: float
    kind: Kind
    source: str
    note: str
    """What a reader has to know before believing it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be judged."""

    lines: int
    """Comparisons."""
    tokens: int
    """The length of one prompt: the instructions, the question and both responses."""
    orders: Literal["both", "ab", "ba"] = "both"
    reused_tokens: int = 0
    """Of each prompt, how many tokens are assumed to be taken from earlier ones."""

    @property
    def judgements(self) -> int:
        """Forward passes: one for each order of each comparison."""
        return self.lines * ORDERS[self.orders]

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that have to be computed."""
        return self.judgements * (self.tokens - self.reused_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a number of GPUs makes of a job."""

    job: Job
    rate: Rate
    gpus: int

    @property
    def seconds(self) -> float:
        """How long it takes; n GPUs are taken to do n times what one does."""
        return self.job.computed_tokens / (self.rate.tokens_per_second * self.gpus)

    @property
    def judgements_per_second(self) -> float:
        """Of all GPUs together."""
        return self.job.judgements / self.seconds

    @property
    def comparisons_per_second(self) -> float:
        """Of all GPUs together."""
        return self.job.lines / self.seconds


class _Measurement(BaseModel):
    tokens_per_judgement: PositiveFloat
    tokens_per_second: float = Field(ge=1e-9, le=MOST)


class _Engine(BaseModel):
    engine: str
    model: str
    quantisation: str
    simulated: bool = False


class BenchReport(BaseModel):
    """What a plan reads of the JSON report of `nightcourt engine bench`."""

    engine: _Engine
    measured: list[_Measurement] = Field(min_length=1)


def gpus_needed(job: Job, rate: Rate, seconds: float) -> int:
    """How many GPUs do a job within so many seconds."""
    return max(1, math.ceil(job.computed_tokens / (rate.tokens_per_second * seconds)))


def published(gpu: str) -> Rate:
    """What NVIDIA published for a GPU.

    Raises:
        PlanError: nothing that is known here.
    """
    output = _PUBLISHED_OUTPUT.get(gpu)
    if output is None:
        raise PlanError(
            f"no published rate of {gpu} is known here, but of {_listed(_PUBLISHED_OUTPUT)}; give --measured with the "
            "report of `nightcourt engine bench`, or --rate"
        )
    return Rate(
        tokens_per_second=output / _PUBLISHED_OUT * _PUBLISHED_IN,
        kind="published",
        source=(
            f"NVIDIA TensorRT-LLM, performance overview for v1.0: Llama-3.1-8B-Instruct FP8 on one {gpu.upper()}, "
            f"{output:,.0f} output tokens/s at {_PUBLISHED_IN:,} tokens in and {_PUBLISHED_OUT} out, PyTorch backend"
        ),
        note=(
            f"for another engine, and with {_PUBLISHED_OUT} tokens written where a judgement writes one: probably less "
            "than what a judge does, and not measured here"
        ),
    )


def roofline(gpu: str, precision: Precision, tokens: int) -> Rate:
    """What a GPU could do at best: its peak over the operations that a token takes.

    Raises:
        PlanError: the GPU's peak is not known here.
    """
    if gpu not in PEAKS:
        raise PlanError(
            f"the peak of {gpu} is not known here, but of {_listed(PEAKS)}; give --measured with the report of "
            "`nightcourt engine bench`, or --rate"
        )
    peak = PEAKS[gpu][precision]
    return Rate(
        tokens_per_second=roof_tokens_per_second(LLAMA_8B, tokens, peak),
        kind="roofline",
        source=(
            f"computed: {peak:,.1f} TFLOPS, the dense {precision.upper()} peak of {gpu.upper()} SXM, over "
            f"{operations_per_token(LLAMA_8B, tokens) / 1e9:.2f} GFLOP a token of Llama-3.1-8B at {tokens:,} tokens"
        ),
        note="a bound that no run reaches: it takes longer, or more GPUs",
    )


def measured(report: BenchReport, tokens: int, *, name: str) -> Rate:
    """The rate in a report, at the prompt length nearest to the one asked for.

    Args:
        report: of `nightcourt engine bench`, which measures one engine on one GPU.
        tokens: the prompt length to plan for.
        name: what to call the report.
    """
    nearest = min(report.measured, key=lambda each: abs(each.tokens_per_judgement - tokens))
    engine = report.engine
    note = "a rate of the engine and the machine that it was measured on, what was reused between prompts included"
    if engine.simulated:
        note = "the engine was simulated: the rate is what it was told to pretend, and says nothing of a GPU"
    return Rate(
        tokens_per_second=nearest.tokens_per_second,
        kind="measured",
        source=(
            f"{name}: {engine.engine} with {engine.model} ({engine.quantisation}), "
            f"prompts of {nearest.tokens_per_judgement:,.0f} tokens"
        ),
        note=note,
    )


def given(tokens_per_second: float) -> Rate:
    """A rate that somebody gives."""
    return Rate(tokens_per_second=tokens_per_second, kind="given", source="given with --rate", note="not checked")


def next_time(start: datetime, at: time, zone: tzinfo | None) -> datetime:
    """The first moment after `start` at which the clocks of a zone show a time.

    Args:
        start: aware.
        at: the time on the clock.
        zone: None for that of this machine.

    Returns:
        It in UTC: between two moments of one zone Python counts what the clocks show, and not what passes.
    """
    day = start.astimezone(zone).date()
    walls = (datetime.combine(day + timedelta(days=later), at) for later in range(3))
    # A time that a change of clocks repeats comes twice, and its second time is told by the fold.
    moments = (_in_zone(wall.replace(fold=fold), zone) for wall in walls for fold in (0, 1))
    return next(moment for moment in moments if moment > start)


def _in_zone(wall: datetime, zone: tzinfo | None) -> datetime:
    return (wall if zone is None else wall.replace(tzinfo=zone)).astimezone(UTC)


def _listed(gpus: Iterable[str]) -> str:
    return " and ".join(gpus)
