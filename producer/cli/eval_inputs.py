"""What evals read: pairs with what is known of them, outputs of several systems, and verdicts given before."""

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from producer.cli import inputs
from producer.evals.curating import REPLACED, Source
from producer.evals.rows import Pair
from producer.evals.schedule import Field, Prompt
from schemas.comparison import Comparison
from schemas.ids import parse_comparison_id
from schemas.lines import BadLineError, Line, group_of, parse, read_line, subset_of
from schemas.verdict import Verdict

_OPTIONS = ("order", "profile", "tie_margin")
"""Fields of a line that say how it is judged."""


def read_pairs(file: Path, baseline: Path | None = None) -> list[Pair]:
    """Read pairs to be judged, in any form that a batch takes; with a baseline, two systems' AlpacaEval outputs.

    A pair's id is its `custom_id` or `id`, or else the number of its line. Pairs on the same prompt are one group.

    Raises:
        Problem: the file cannot be read, a line is no comparison, or two have the same id.
    """
    pairs: dict[str, Pair] = {}
    names = (None, None) if baseline is None else (inputs.generator(baseline), inputs.generator(file))
    for number, found, _ in _lines(file, baseline, names):
        if isinstance(found, BadLineError):
            raise inputs.bad(file, f"line {number}: {str(found).rstrip('.')}")
        if found.id in pairs:
            raise inputs.bad(file, f"line {number}: another line has the same id; ids must be unique")
        pairs[found.id] = found
    if not pairs:
        raise inputs.bad(file, inputs.EMPTY)
    return list(pairs.values())


def read_preferences(file: Path, *, skip: bool = False) -> Source:
    """Read preference rows: pairs that say which response is the better.

    Args:
        file: in any form that a batch takes.
        skip: note lines that are none, instead of refusing the file.

    Raises:
        Problem: the file cannot be read, is empty, or a line is no preference row, or has the id of another.
    """
    pairs: dict[str, Pair] = {}
    unreadable: list[str] = []
    columns: dict[str, dict[str, Any]] = {}
    for number, found, row in _lines(file, None, (None, None)):
        if isinstance(found, BadLineError):
            why = str(found).rstrip(".")
        elif found.label is None:
            why = "it does not say which response is the better, by chosen and rejected or by a label"
        elif found.id in pairs:
            why = "another line has the same id; ids must be unique"
        else:
            pairs[found.id] = found
            columns[found.id] = {name: value for name, value in row.items() if name not in REPLACED}
            continue
        if not skip:
            raise inputs.bad(file, f"line {number}: {why}. With --on-bad-line skip the others are curated")
        unreadable.append(f"line {number}")
    if not pairs and not unreadable:
        raise inputs.bad(file, inputs.EMPTY)
    return Source(list(pairs.values()), unreadable, columns)


def _lines(
    file: Path, baseline: Path | None, names: tuple[str | None, str | None]
) -> Iterator[tuple[int, Pair | BadLineError, dict[str, Any]]]:
    """Read a file's lines with their numbers, each also as the row that it is; of what is no comparison, say why."""
    with inputs.json_lines(file, baseline) as source, inputs.opened(source) as lines:
        for number, raw in enumerate(lines, start=1):
            text = raw.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            try:
                line, row = read_line(text), parse(text)
            except BadLineError as error:
                yield number, error, {}
            else:
                yield number, _pair(line, row, number, names), row


def _pair(line: Line, row: dict[str, Any], number: int, names: tuple[str | None, str | None]) -> Pair:
    asked = line.request
    return Pair(
        id=line.custom_id or str(number),
        prompt=asked["prompt"],
        response_a=asked["response_a"],
        response_b=asked["response_b"],
        label=line.label,
        subset=subset_of(row),
        group=group_of(asked["prompt"]),
        system_a=names[0],
        system_b=names[1],
        options={name: asked[name] for name in _OPTIONS if asked.get(name) is not None},
    )


def read_field(files: Sequence[Path], *, seed: int) -> Field:
    """Read several systems' AlpacaEval outputs on the same instructions.

    Raises:
        Problem: a file cannot be read, is not of the same instructions as the first, or names the same system.
    """
    systems: dict[str, Path] = {}
    answers: dict[str, list[Any]] = {}
    prompts: list[Prompt] = []
    places: dict[tuple[str, int], int] = {}
    for file in files:
        name = inputs.generator(file)
        if name in systems:
            raise inputs.same_name(file, systems[name], name)
        systems[name] = file
        found = {(instruction, nth): (output, row) for instruction, output, nth, row in inputs.outputs(file)}
        if not places:
            places = {key: index for index, key in enumerate(found)}
            prompts = [
                Prompt(group=group_of(key[0]), prompt=key[0], subset=_subset(row)) for key, (_, row) in found.items()
            ]
        if found.keys() != places.keys():
            raise inputs.bad(file, f"its instructions are not those of {files[0]}; all must be of the same set")
        answers[name] = [found[key][0] for key in places]
    return Field(list(systems), prompts, answers, seed=seed)


def _subset(row: dict[str, Any]) -> str | None:
    return None if row.get("dataset") is None else str(row["dataset"])


def read_verdicts(file: Path) -> dict[str, Comparison]:
    """Read comparison objects, a line each, as `nightcourt batch run` and `batch results` write them.

    Returns:
        By `custom_id`, or else by the number of the line that they were filed from.

    Raises:
        Problem: the file cannot be read, a line is no comparison object or has odds that cannot be, or two are of one
            pair and differ.
    """
    found: dict[str, Comparison] = {}
    with inputs.opened(file) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                comparison = Comparison.model_validate_json(raw)
            except ValidationError:
                raise inputs.bad(
                    file, f"line {number} is no comparison object, as `nightcourt batch results` writes them"
                ) from None
            if comparison.verdict is not None and not _is_possible(comparison.verdict):
                raise inputs.bad(file, f"line {number}: its odds must be finite, and its probability from 0 to 1")
            key = parse_comparison_id(comparison.id)
            name = comparison.custom_id or str(key.line if key else number)
            # Results of two batches in one file: which of the two is meant, nobody said.
            if found.setdefault(name, comparison) != comparison:
                raise inputs.bad(
                    file, f"line {number}: another line has a different verdict of {name}; keep one of them"
                )
    return found


def _is_possible(verdict: Verdict) -> bool:
    """Tell whether a verdict's figures can be counted: a file may have been through other hands."""
    odds = [verdict.position_bias, *(each.log_odds for each in verdict.ballots)]
    chance = verdict.probability_a
    return all(each is None or isfinite(each) for each in odds) and (chance is None or 0.0 <= chance <= 1.0)
