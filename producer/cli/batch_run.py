"""`nightcourt batch run`: file all pairs of a file, watch them being judged, write the results and sum them up."""

import re
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from infra import settings
from producer.cli import following, inputs, runs
from producer.cli.destinations import check_file
from producer.cli.filing import Run, filed
from producer.cli.options import DataDir, Server, TieMargin, again
from producer.cli.output import console, is_stream, print_json, progress, write_lines
from producer.cli.report import Report, add_up
from producer.client import Client, InvalidRequest
from producer.client.bulk import batch_request
from schemas.batch import Batch, BatchStatus
from schemas.comparison import Orders, Profile
from schemas.problems import (
    BAD_INPUT_FILE,
    BAD_OUTPUT_FILE,
    BATCH_FAILED,
    FieldError,
    Problem,
)

_SHOWN = 10
_LISTED = 100
"""Of how many bad lines the service tells."""
_WINDOW = re.compile(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})(?:@(\S+))?")
_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".parquet")


def run(
    file: Annotated[
        Path, typer.Argument(help="JSON lines, also .gz or .zst; or .parquet; with --baseline, AlpacaEval outputs.")
    ],
    server: Server = None,
    data_dir: DataDir = None,
    baseline: Annotated[
        Path | None, typer.Option(help="AlpacaEval outputs of the system to compare FILE's with; shown as response A.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the results; - for stdout. By default FILE's name .results.jsonl, if that is free."
        ),
    ] = None,
    order: Annotated[Orders | None, typer.Option(help="For lines that do not say.")] = None,
    profile: Annotated[Profile | None, typer.Option(help="The prompt profile, for lines that do not say.")] = None,
    tie_margin: TieMargin = None,
    completion_window: Annotated[str, typer.Option(help="What is undecided after this expires: 90m, 24h, 7d.")] = "24h",
    priority: Annotated[int, typer.Option(help="-100 to 100; higher goes first among your batches.")] = 0,
    on_bad_line: Annotated[
        Literal["fail", "skip"], typer.Option(help="fail: nothing runs. skip: the others do.")
    ] = "fail",
    reuse: Annotated[bool, typer.Option(help="Answer from stored verdicts of the same comparison and judge.")] = True,
    not_before: Annotated[
        str | None, typer.Option(help="Nothing runs before this: 2026-01-31T22:00, local time.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="Hours of each day to run in: 22:00-06:00@Europe/Berlin.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="key=value, kept with the batch; may stand often.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="File it anew, even if the same run is remembered.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as an object, for a program.")] = False,
) -> None:
    """File all pairs of a file, watch them being judged, write the results and sum them up.

    Ctrl-C stops the watching and not the batch. The same command finds it again.

    Example: nightcourt batch run pairs.jsonl --window 22:00-06:00@Europe/Berlin
    """
    for each in (file, baseline):
        if each is not None:
            inputs.check_file(each)
    chosen = settings.load(server=server, data_dir=data_dir)
    options: dict[str, Any] = {"order": order, "profile": profile, "tie_margin": tie_margin, "priority": priority}
    options |= {"on_bad_line": on_bad_line, "reuse": reuse, "metadata": _pairs(metadata or [])}
    options |= {"not_before": _moment(not_before), "window": _window(window)}
    options = {name: value for name, value in options.items() if value is not None}
    _check(completion_window, options)
    destination = output or file.with_name(f"{_stem(file)}.results.jsonl")
    check_file(destination, "--output", [file, baseline])
    asked = Run(
        file=file,
        baseline=baseline,
        completion_window=completion_window,
        options=options,
        output=destination,
        place=runs.find_place(chosen),
        where=again(server, data_dir),
        overwrites=output is not None,
        fresh=fresh,
    )
    with (
        Client(asked.place.url, api_key=asked.place.key) as client,
        filed(client, asked) as (made, key),
    ):
        batch = following.follow(client, made)
        if batch.status is BatchStatus.FAILED and batch.in_progress_at is None:
            refuse(file, batch)
        same = _is_same(asked, batch, key)
        reading = partial(_read, client, asked, batch, labelled=same)
        try:
            report = reading() if is_stream(destination) else following.keep_asking(reading)
        except Problem as problem:
            if problem.kind is not BAD_OUTPUT_FILE:
                raise
            write = f"nightcourt batch results {batch.id}{asked.where} --output FILE"
            raise Problem(problem.kind, f"{problem.detail} The verdicts are kept: `{write}` writes them.") from None
    _conclude(asked, batch, report, same=same, as_json=as_json)
    judge_the_end(batch)


def _is_same(asked: Run, batch: Batch, key: str) -> bool:
    """Tell whether the files are as they were filed; where they are not, say what that costs."""
    with suppress(Problem):
        if asked.key == key:
            return True
    files = f"{asked.file}" if asked.baseline is None else f"{asked.file} or {asked.baseline}"
    progress.print(
        f"{files} was changed after it was filed, and labels of other lines tell nothing: no accuracy here. "
        f"GET /v1/batches/{batch.id}/report has it by the labels that were filed.",
        markup=False,
        soft_wrap=True,
    )
    return False


def _read(client: Client, asked: Run, batch: Batch, *, labelled: bool) -> Report:
    """Write the results, and add them up beside the input where its labels are theirs."""
    report = Report()
    with ExitStack() as ends:
        source = ends.enter_context(inputs.json_lines(asked.file, asked.baseline)) if labelled else None
        known = iter(()) if source is None else inputs.known(source)
        counted = add_up(report, client.batch_result_lines(batch.id), known)
        write_lines(following.read_back(counted, batch.progress.decided), asked.output)
    return report


def _conclude(asked: Run, batch: Batch, report: Report, *, same: bool, as_json: bool) -> None:
    to_stdout = str(asked.output) == "-"
    if as_json:
        output = None if to_stdout else str(asked.output)
        print_json({**report.as_json(), "batch_id": batch.id, "status": batch.status.value, "output": output})
    else:
        systems = None
        if asked.baseline is not None and same:
            systems = inputs.generator(asked.baseline), inputs.generator(asked.file)
        report.show(progress if to_stdout else console, systems)
    if not to_stdout:
        progress.print(f"Results: {asked.output}", markup=False, soft_wrap=True)


def _check(completion_window: str, options: dict[str, Any]) -> None:
    """Find options that cannot be before anything is sent."""
    try:
        batch_request("", completion_window, options)
    except InvalidRequest as error:
        [first, *_] = error.document.errors or [FieldError(field="", message=error.document.detail)]
        name = first.field.partition(".")[0].partition("[")[0].replace("_", "-")
        raise typer.BadParameter(first.message, param_hint=f"--{name}") from None


def _stem(file: Path) -> str:
    name = file.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name or file.name


def _pairs(metadata: list[str]) -> dict[str, str] | None:
    pairs = {}
    for each in metadata:
        name, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"{each} has no =", param_hint="--metadata")
        pairs[name] = value
    return pairs or None


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp())
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            "give a time such as 2026-01-31T22:00 or 2026-01-31T22:00+01:00", param_hint="--not-before"
        ) from None


def _window(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise typer.BadParameter("give it as 22:00-06:00@Europe/Berlin", param_hint="--window")
    start, end, zone = match.groups()
    return {"start": start.zfill(5), "end": end.zfill(5), "timezone": zone or "UTC"}


def refuse(file: Path, batch: Batch) -> NoReturn:
    """Say which lines of the file kept the batch from running."""
    bad = batch.errors.data if batch.errors else []
    errors = [FieldError(field=f"line {each['line']}", message=str(each["message"])) for each in bad if each["line"]]
    if not errors:
        raise Problem(BAD_INPUT_FILE, f"{file}: there is nothing in it. Give one JSON object a line.")
    many = f"{len(errors)} or more lines are" if len(errors) >= _LISTED else f"{len(errors)} lines are"
    shown = "".join(f"\n  {each.field}: {each.message}" for each in errors[:_SHOWN])
    more = f"\n  and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    others = "" if batch.on_bad_line == "skip" else ", or let the others be judged with --on-bad-line skip"
    raise Problem(
        BAD_INPUT_FILE,
        f"{file}: {'1 line is' if len(errors) == 1 else many} no comparison, and nothing was judged:{shown}{more}\n"
        f"Mend the file{others}.",
        errors=errors,
    )


def judge_the_end(batch: Batch) -> None:
    """End with a problem where a batch has not ended well."""
    if batch.status is BatchStatus.COMPLETED:
        return
    if batch.status is BatchStatus.FAILED:
        [first, *_] = batch.errors.data if batch.errors else [{"code": "unknown", "message": ""}]
        why = f"every line errored, most of them with {first['code']}: {first['message']}"
        again = f" `nightcourt batch retry {batch.id}` judges them again."
    else:
        left = batch.request_counts.cancelled + batch.request_counts.expired
        why = (
            f"it was cancelled; {left} lines were not judged"
            if batch.status is BatchStatus.CANCELLED
            else (f"{left} lines were not judged before its completion window of {batch.completion_window} was over")
        )
        again = " --fresh files the file anew."
    raise Problem(BATCH_FAILED, f"{batch.id}: {why.rstrip('.')}.{again}")
