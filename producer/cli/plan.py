"""`nightcourt plan`: how long it takes, or how many GPUs it needs."""

from dataclasses import asdict
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import typer
from pydantic import ValidationError

from infra.roofline import Precision
from producer import planning
from producer.cli.options import finite
from producer.cli.output import console, print_json
from producer.planning import BenchReport, Job, Plan, Rate
from schemas.comparison import Orders
from schemas.problems import BAD_INPUT_FILE, Problem, first_error

Source = Literal["published", "roofline"]
"""Rates that are known without measuring."""


def plan(
    lines: Annotated[int, typer.Option(min=1, help="Comparisons.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of one prompt: instructions, question, both responses.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, one worker each.")] = 1,
    gpu: Annotated[str, typer.Option(help="Which, for a published rate or the roofline: h100, h200.")] = "h100",
    order: Annotated[Orders, typer.Option(help="Both orders take two judgements a comparison.")] = "both",
    by: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="When it has to be done; tells the GPUs needed.")
    ] = None,
    start: Annotated[str | None, typer.Option(metavar="HH:MM", help="When it begins; now by default.")] = None,
    timezone: Annotated[str | None, typer.Option(help="The zone of both; this machine's by default.")] = None,
    source: Annotated[
        Source | None,
        typer.Option(help="Plan by what is published (the default), or by what the GPU could do at best."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="For the roofline.")] = "fp8",
    measured: Annotated[Path | None, typer.Option(help="Plan by the JSON report of `nightcourt engine bench`.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-9, max=planning.MOST, help="Plan by this many prompt tokens/s a GPU.", callback=finite),
    ] = None,
    reused_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of each prompt assumed to be reused from earlier ones.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """Tell how long comparisons take, or how many GPUs judge them in time, and where the rate is from.

    Example: nightcourt plan --lines 1000000 --tokens 1500 --gpus 4 --gpu h100 --by 06:00
    """
    if sum(each is not None for each in (source, measured, rate)) > 1:
        raise typer.BadParameter("a plan stands on one rate: give one of --source, --measured and --rate")
    if start is not None and by is None:
        raise typer.BadParameter("goes with --by", param_hint="--start")
    if reused_tokens >= tokens:
        raise typer.BadParameter("must be fewer than --tokens", param_hint="--reused-tokens")
    if measured is not None and reused_tokens:
        raise typer.BadParameter(
            "a measured rate counts prompts whole, with what was reused in them", param_hint="--reused-tokens"
        )
    try:
        chosen = _rate(gpu.lower(), tokens, source or "published", precision, measured, rate)
    except planning.PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--gpu") from None
    made = Plan(Job(lines=lines, tokens=tokens, orders=order, reused_tokens=reused_tokens), chosen, gpus)
    deadline = None if by is None else _deadline(made, by, start, timezone)
    kind = gpu.lower() if chosen.kind in get_args(Source) else None
    if as_json:
        print_json(_as_json(made, kind, deadline))
    else:
        _show(made, kind, deadline)


def _rate(
    gpu: str, tokens: int, source: Source, precision: Precision, measured: Path | None, rate: float | None
) -> Rate:
    if rate is not None:
        return planning.given(rate)
    if measured is not None:
        return planning.measured(_read(measured), tokens, name=str(measured))
    if source == "roofline":
        return planning.roofline(gpu, precision, tokens)
    return planning.published(gpu)


def _read(file: Path) -> BenchReport:
    try:
        return BenchReport.model_validate_json(file.read_bytes())
    except OSError as error:
        raise Problem(BAD_INPUT_FILE, f"{file}: {error.strerror or error}.") from None
    except ValidationError as error:
        where, message = first_error(error)
        detail = f"{file}: not a report of `nightcourt engine bench --json`: {where or 'the file'}: {message}."
        raise Problem(BAD_INPUT_FILE, detail) from None


def _deadline(made: Plan, by: str, start: str | None, timezone: str | None) -> dict[str, Any]:
    try:
        zone = None if timezone is None else ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise typer.BadParameter(
            "is no time zone; one is for instance Europe/Berlin", param_hint="--timezone"
        ) from None
    begins = datetime.now(UTC)
    if start is not None:
        begins = planning.next_time(begins, _clock(start, "--start"), zone)
    at = planning.next_time(begins, _clock(by, "--by"), zone)
    seconds = (at - begins).total_seconds()
    needed = planning.gpus_needed(made.job, made.rate, seconds)
    return {
        "start": begins.astimezone(zone).isoformat(timespec="minutes"),
        "by": at.astimezone(zone).isoformat(timespec="minutes"),
        "hours": round(seconds / 3600, 3),
        "gpus_needed": needed,
        "enough": needed <= made.gpus,
    }


def _clock(text: str, option: str) -> time:
    try:
        return datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007 - a time on a clock has no zone
    except ValueError:
        raise typer.BadParameter("takes hours and minutes: 06:00", param_hint=option) from None


def _as_json(made: Plan, gpu: str | None, deadline: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "object": "plan",
        "job": asdict(made.job) | {"judgements": made.job.judgements, "computed_tokens": made.job.computed_tokens},
        "rate": asdict(made.rate),
        "gpu": gpu,
        "gpus": made.gpus,
        "hours": round(made.seconds / 3600, 4),
        "judgements_per_second": round(made.judgements_per_second, 2),
        "comparisons_per_second": round(made.comparisons_per_second, 2),
        "deadline": deadline,
        "assumed": list(_assumed(made)),
    }


def _assumed(made: Plan) -> tuple[str, str]:
    job = made.job
    reuse = (
        f"{job.reused_tokens:,} of the {job.tokens:,} tokens of each prompt are reused from earlier prompts"
        if job.reused_tokens
        else "what prompts share was reused as it was when the rate was measured"
        if made.rate.kind == "measured"
        else "nothing is reused between prompts, although instructions and questions are shared"
    )
    return reuse, "every GPU is kept busy, and several do as many times as much as one"


def _show(made: Plan, gpu: str | None, deadline: dict[str, Any] | None) -> None:
    job = made.job
    each = "in both orders" if job.orders == "both" else f"in order {job.orders}"
    asked = f"{job.lines:,} comparisons {each}: {job.judgements:,} judgements of {job.tokens:,} tokens"
    speed = f"{made.judgements_per_second:,.1f} judgements/s, {made.comparisons_per_second:,.1f} comparisons/s"
    said = [
        f"{asked}, {job.computed_tokens:,} tokens to compute",
        f"{made.gpus} x {gpu or 'GPU'}: {_duration(made.seconds)}, {speed}",
    ]
    if deadline is not None:
        verdict = "enough" if deadline["enough"] else "too few"
        said.append(
            f"from {deadline['start']} by {deadline['by']}: {deadline['gpus_needed']} needed, {made.gpus} {verdict}"
        )
    said += [
        f"rate: {made.rate.tokens_per_second:,.0f} prompt tokens/s a GPU, {made.rate.kind}",
        f"  source: {made.rate.source}",
        f"  note: {made.rate.note}",
        *(f"assumed: {each}" for each in _assumed(made)),
    ]
    for line in said:
        console.print(line, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004 - minutes say nothing of less
        return f"{seconds:,.1f} seconds"
    return f"{seconds / 3600:,.2f} hours"
