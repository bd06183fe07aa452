"""What the commands of `nightcourt eval` do: read, have judged, count, show, write. Imports the statistics."""

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from infra import settings
from producer.cli import eval_show
from producer.cli.destinations import datasheet
from producer.cli.eval_inputs import read_field, read_pairs, read_preferences
from producer.cli.eval_judging import JudgePairs, judging
from producer.cli.options import again
from producer.cli.output import progress, write_bytes, write_lines
from producer.cli.training import described, write_training
from producer.evals import audit, calibrating, curating, exports, gold, html, rewardbench, tournament, versus
from producer.evals.curating import Rules
from producer.evals.numbers import Result
from producer.evals.rows import Judged, Pair
from producer.evals.tournament import Plan
from schemas.problems import BAD_INPUT_FILE, BAD_OUTPUT_FILE, Problem

__all__ = [
    "Asked",
    "Plan",
    "Rules",
    "audit_file",
    "calibrate_file",
    "curate_file",
    "gold_file",
    "rewardbench_file",
    "tournament_of",
    "versus_files",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What every command was asked for."""

    server: str | None
    data_dir: Path | None
    profile: str | None
    tie_margin: float | None
    verdicts: Path | None
    output: Path | None
    fresh: bool
    as_json: bool

    def __post_init__(self) -> None:
        of_judging = {
            "--profile": self.profile,
            "--tie-margin": self.tie_margin,
            "--server": self.server,
            "--data-dir": self.data_dir,
            "--fresh": self.fresh or None,
        }
        for option, value in of_judging.items():
            if self.verdicts is not None and value is not None:
                raise typer.BadParameter("goes not with --verdicts, which are judged already", param_hint=option)

    def judge(self, *named: str | Path) -> AbstractContextManager[JudgePairs]:
        """Open what judges, for an eval and its files: by these its batches are told from others."""
        options: dict[str, Any] = {"order": "both", "profile": self.profile, "tie_margin": self.tie_margin}
        return judging(
            settings.load(server=self.server, data_dir=self.data_dir),
            verdicts=self.verdicts,
            options={name: value for name, value in options.items() if value is not None},
            where=again(self.server, self.data_dir),
            fresh=self.fresh,
            name=textwrap.shorten(
                " ".join(str(getattr(each, "name", each)) for each in named), 200, placeholder=" ..."
            ),
        )


def versus_files(asked: Asked, file: Path, baseline: Path | None) -> None:
    """Compare two systems."""
    pairs = read_pairs(file, baseline)
    with asked.judge("versus", file, *([] if baseline is None else [baseline])) as judge:
        judged = judge(pairs)
    result = versus.count(judged, system=pairs[0].system_b or "response B", baseline=pairs[0].system_a or "response A")
    eval_show.conclude(result, as_json=asked.as_json)
    _write(asked, result, judged, pairs, systems=baseline is not None)


def tournament_of(asked: Asked, files: Sequence[Path], plan: Plan, seed: int) -> None:
    """Rate several systems."""
    field = read_field(files, seed=seed)
    if plan.baseline is not None and plan.baseline not in field.systems:
        raise Problem(BAD_INPUT_FILE, f"No file is of {plan.baseline}; there are {', '.join(field.systems)}.")
    pairs: dict[str, Pair] = {}
    with asked.judge("tournament", *files) as judge:

        def judge_round(round_pairs: list[Pair], number: int) -> Judged:
            pairs.update((pair.id, pair) for pair in round_pairs)
            return judge(round_pairs, number)

        judged = tournament.play(field, plan, judge_round, eval_show.tell_round)
    try:
        result = tournament.count(judged, field, plan)
    except ValueError as error:
        raise Problem(BAD_INPUT_FILE, f"{str(error).capitalize()}.") from None
    eval_show.conclude(result, as_json=asked.as_json)
    _write(asked, result, judged, list(pairs.values()), systems=True)


def rewardbench_file(asked: Asked, file: Path) -> None:
    """Score a judge on RewardBench."""
    pairs = _labelled(file)
    if not any(pair.subset for pair in pairs):
        raise Problem(BAD_INPUT_FILE, f"{file}: no row has a subset, by which RewardBench weighs.")
    with asked.judge("rewardbench", file) as judge:
        judged = judge(pairs)
    result = rewardbench.count(judged)
    eval_show.conclude(result, as_json=asked.as_json)
    _write(asked, result, judged, pairs)


def gold_file(asked: Asked, file: Path) -> None:
    """Hold a judge against labels."""
    pairs = _labelled(file)
    with asked.judge("gold", file) as judge:
        judged = judge(pairs)
    result = gold.count(judged)
    eval_show.conclude(result, as_json=asked.as_json)
    _write(asked, result, judged, pairs)


def calibrate_file(asked: Asked, file: Path, write: Path) -> None:
    """Fit a temperature and write it down."""
    pairs = _labelled(file)
    with asked.judge("calibrate", file) as judge:
        judged = judge(pairs)
    try:
        result = calibrating.fit(judged)
    except calibrating.CannotCalibrateError as error:
        raise Problem(BAD_INPUT_FILE, f"{file}: {error}.") from None
    if result.better:
        write_lines([result.calibration.model_dump_json(indent=1).encode()], write)
        said = f"Wrote {write}. Workers use it with NIGHTCOURT_CALIBRATION_FILE={write.resolve()}"
    else:
        said = f"Did not write {write}: on held-out pairs this temperature is no better than 1."
        if write.exists():
            said += " What was there before still is, and workers that were given it use it: take it away."
    eval_show.conclude(result, as_json=asked.as_json)
    progress.print(said, markup=False, soft_wrap=True)
    _write(asked, result, judged, pairs)


def require_free(write: Path, file: Path) -> None:
    """Keep what somebody made of other rows under a name that nobody gave.

    Raises:
        Problem: there is such a training file, and its datasheet does not say that it was made of this file.
    """
    if not write.exists():
        return
    with suppress(OSError, ValueError):
        made = curating.Curated.model_validate_json(datasheet(write).read_bytes())
        if made.source.sha256 == described(file, 0).sha256:
            return
    raise Problem(
        BAD_OUTPUT_FILE,
        f"{write} is there already and was not made of {file}. Name a file with --write, which is written over; "
        "nothing was judged.",
    )


def curate_file(asked: Asked, file: Path, write: Path, form: curating.Format, rules: Rules, *, skip: bool) -> None:
    """Keep, flip or leave out preference rows, and write the datasheet beside them."""
    source = read_preferences(file, skip=skip)
    # Now, and not when it is judged, a night later: the hash is that of the rows that were read.
    read = described(file, len(source.pairs) + len(source.unreadable))
    with asked.judge("curate", file) as judge:
        to_judge = source.to_judge()
        judged = curating.settle(source, judge(to_judge) if to_judge else Judged([], []), rules)
    written = write_training(list(curating.training_rows(judged.rows, source, form)), write)
    result = curating.count(judged, rules, source=read, written=written, form=form)
    beside = datasheet(write)
    write_lines([result.model_dump_json(indent=1).encode()], beside)
    eval_show.conclude(result, as_json=asked.as_json)
    progress.print(f"Wrote {write}, and its datasheet {beside}", markup=False, soft_wrap=True)
    _write(asked, result, judged, source.pairs)


def audit_file(asked: Asked, file: Path, most: int) -> None:
    """Find what sways a judge, by rows and by pairs made from them."""
    own = [replace(pair, subset=audit.OWN) for pair in read_pairs(file)]
    pairs = [*own, *audit.controlled(own, most)]
    with asked.judge("audit", file) as judge:
        judged = judge(pairs)
    result = audit.count(judged)
    eval_show.conclude(result, as_json=asked.as_json)
    _write(asked, result, judged, pairs)


def _labelled(file: Path) -> list[Pair]:
    pairs = read_pairs(file)
    if not any(pair.label for pair in pairs):
        raise Problem(
            BAD_INPUT_FILE, f'{file}: no line has a label. Give "label": "A" or "B", or rows with chosen and rejected.'
        )
    return pairs


def _write(asked: Asked, result: Result, judged: Judged, pairs: Sequence[Pair], *, systems: bool = False) -> None:
    """Write the report and the rows behind it; where systems met, also in the forms of other tools."""
    if asked.output is None:
        return
    folder = asked.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(BAD_OUTPUT_FILE, f"{folder}: {error.strerror}.") from None
    texts = {pair.id: pair for pair in pairs}
    write_bytes(html.render(result, judged, texts), folder / "report.html")
    write_lines([result.model_dump_json(indent=1).encode()], folder / "report.json")
    write_lines(exports.as_csv(judged.rows), folder / "rows.csv")
    write_lines(exports.as_json_lines(judged.rows), folder / "rows.jsonl")
    if systems:
        write_lines(exports.as_annotations(judged, texts), folder / "annotations.json")
        write_lines(exports.as_evalica(judged.rows), folder / "comparisons.csv")
    progress.print(f"Report: {folder / 'report.html'}", markup=False, soft_wrap=True)
