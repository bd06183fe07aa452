"""Curate: preference rows, kept, flipped or left out by what a judge says of their labels, each counted."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from producer.evals.numbers import SWAYED, Frozen, Number, Result, Where, common, mean, share
from producer.evals.rows import Judged, Pair, Row, subsets

Format = Literal["dpo", "kto", "reward"]

FATES = {
    "kept": "the judge prefers the labelled response, and is sure enough",
    "flipped": "the judge is so sure of the other response that the label was turned round",
    "unsure": "the judge prefers the labelled response, but is not sure enough, or calls it a tie",
    "disagrees": "the judge prefers the other response, but is not sure enough to turn the label round",
    "inconsistent": "the two orders do not name the same winner, or only one was asked",
    "no_probability": "the engine gave votes alone, so that nobody knows how sure the judge is",
    "no_verdict": "the judge came to no verdict",
    "duplicate": "the same prompt and responses, with the same label, stand in an earlier row",
    "contradiction": "the same prompt and responses, with the opposite label, stand in an earlier row",
    "same_responses": "both responses are the same",
    "unreadable": "the line is no preference row",
}
"""Every row has one of these, and what it means."""
WRITTEN = ["kept", "flipped"]
REPLACED = frozenset({"prompt", "chosen", "rejected", "completion", "label", "messages", "response_a", "response_b"})
"""Columns of the input that are not written: what a pair is made of, and names by which TRL tells its formats apart."""

_ALL: Where = {}
_DECIDED: Where = {"decided": True}
_WRITTEN: Where = {"fate": WRITTEN}
_EVEN = 0.5


class Rules(Frozen):
    """What is kept, and what is flipped."""

    min_confidence: float = Field(default=0.6, description="P(labelled response better) from which a row is kept")
    flip_confidence: float | None = Field(
        default=0.9, description="P(the other better) from which a label is turned round; null: never"
    )
    consistent: bool = Field(default=True, description="Whether both orders must name the same winner")


@dataclass(frozen=True, slots=True)
class Source:
    """Preference rows as they were read, in their order."""

    pairs: list[Pair]
    """All that could be read, each with a label."""
    unreadable: list[str]
    """Names of the lines that are no preference row."""
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What else stands in the rows that could be read, by their ids: without the columns that are replaced."""

    def before_judging(self) -> dict[str, str]:
        """Find the rows whose fate needs no judge, by id."""
        fates: dict[str, str] = {}
        seen: dict[bytes, bool] = {}
        for pair in self.pairs:
            if pair.response_a == pair.response_b:
                fates[pair.id] = "same_responses"
                continue
            key, first_is_better = _key(pair)
            if key in seen:
                fates[pair.id] = "duplicate" if seen[key] == first_is_better else "contradiction"
            else:
                seen[key] = first_is_better
        return fates

    def to_judge(self) -> list[Pair]:
        """Give the pairs that a judge must be asked about."""
        fates = self.before_judging()
        return [pair for pair in self.pairs if pair.id not in fates]


def _key(pair: Pair) -> tuple[bytes, bool]:
    """Name a prompt with two responses, in whatever order; and tell whether the better is the first by their names."""
    better, worse = (pair.response_a, pair.response_b) if pair.label == "A" else (pair.response_b, pair.response_a)
    marks = [hashlib.sha256(json.dumps(each).encode()).digest() for each in (better, worse)]
    return pair.group.encode() + b"".join(sorted(marks)), marks[0] < marks[1]


def decide(row: Row, rules: Rules) -> str:
    """Decide the fate of a judged row."""
    if not row.decided:
        return "no_verdict"
    chance = row.label_probability
    if chance is None:
        return "no_probability"
    if rules.consistent and row.consistent is not True:
        return "inconsistent"
    tied = row.winner == "tie"
    if chance >= rules.min_confidence and not tied:
        return "kept"
    if rules.flip_confidence is not None and 1.0 - chance >= rules.flip_confidence and not tied:
        return "flipped"
    return "unsure" if chance >= _EVEN or tied else "disagrees"


def settle(source: Source, judged: Judged, rules: Rules) -> Judged:
    """Give every row of the source its fate, those that were not judged too; unreadable lines come last."""
    found = {row.id: replace(row, fate=decide(row, rules)) for row in judged.rows}
    early = source.before_judging()
    rows = [found[pair.id] if pair.id in found else _not_judged(pair, early[pair.id]) for pair in source.pairs]
    rows += [
        Row(id=name, group=name, status="not_judged", error="unreadable", fate="unreadable")
        for name in source.unreadable
    ]
    return Judged(rows, judged.judges)


def _not_judged(pair: Pair, fate: str) -> Row:
    return Row(
        id=pair.id,
        group=pair.group,
        status="not_judged",
        error=fate,
        subset=pair.subset,
        label=pair.label,
        fate=fate,
    )


class Fated(Frozen):
    """How many rows had a fate."""

    fate: str
    meaning: str
    rows: Number = Field(description="Share of all rows")


class Part(Frozen):
    """The same for one subset."""

    subset: str
    kept: Number
    flipped: Number
    agreement: Number


class File(Frozen):
    """A file, by what is in it."""

    name: str
    sha256: str
    rows: int


class Curated(Result):
    """The datasheet of a curated set. The same rows, rules and verdicts give the same bytes."""

    source: File
    written: File
    format: Format
    rules: Rules
    fates: list[Fated] = Field(description="Every fate there is; their rows add up to all")
    agreement: Number = Field(description="Of judged rows: the judge prefers the labelled response")
    consistent: Number
    first_slot: Number = Field(description="Of rows whose orders disagree, the share that preferred what came first")
    longer_before: Number = Field(description="Of judged rows whose responses differ in length: the labelled is longer")
    longer_after: Number = Field(description="The same of what was written, with its labels")
    margin: Number = Field(description="Mean log-odds of the better over the other, of what was written")
    subsets: list[Part]


def count(judged: Judged, rules: Rules, *, source: File, written: File, form: Format) -> Curated:
    """Count every row's fate.

    Args:
        judged: rows with fates, as `settle` gives them.
        rules: they were settled by.
        source: the file that they came from.
        written: the file that they went to.
        form: of that file.
    """
    rows = judged.rows
    both: Where = {"both": True}
    return Curated(
        **common("curate", judged),
        source=source,
        written=written,
        format=form,
        rules=rules,
        fates=[
            Fated(fate=fate, meaning=meaning, rows=share(rows, _ALL, {"fate": fate})) for fate, meaning in FATES.items()
        ],
        agreement=share(rows, {"labelled": True}, {"correct": True}),
        consistent=share(rows, both, {"consistent": True}),
        first_slot=share(rows, SWAYED, {"first_slot": True}),
        longer_before=share(rows, {**_DECIDED, "label_longer": [True, False]}, {"label_longer": True}),
        longer_after=share(rows, {**_WRITTEN, "chosen_longer": [True, False]}, {"chosen_longer": True}),
        margin=mean(rows, _WRITTEN, "margin"),
        subsets=[
            Part(
                subset=name,
                kept=share(part, {"subset": name}, {"fate": "kept"}),
                flipped=share(part, {"subset": name}, {"fate": "flipped"}),
                agreement=share(part, {"subset": name, "labelled": True}, {"correct": True}),
            )
            for name, part in subsets(rows).items()
        ],
    )


def training_rows(rows: Sequence[Row], source: Source, form: Format) -> Iterator[dict[str, Any]]:
    """Give what is written out, in the forms that TRL documents (its page of dataset formats).

    - dpo: `prompt, chosen, rejected`.
    - kto: `prompt, completion, label`, two rows for each pair.
    - reward: `prompt, chosen, rejected, margin`; the margin is in log-odds.

    Where any of a set is a conversation all of it is, since a column has one type. The other columns of a row follow as
    they were, also of one whose label was turned round, and `flipped` says whether it was: what they say of the chosen
    response is of the rejected one then.

    Args:
        rows: with fates.
        source: the rows that they are of.
        form: which of these.
    """
    pairs = {pair.id: pair for pair in source.pairs}
    written = [(row, pairs[row.id]) for row in rows if row.chosen is not None]
    turns = any(
        not isinstance(each, str) for _, pair in written for each in (pair.prompt, pair.response_a, pair.response_b)
    )
    for row, pair in written:
        better, worse = (pair.response_a, pair.response_b) if row.chosen == "A" else (pair.response_b, pair.response_a)
        prompt, chosen, rejected = pair.prompt, better, worse
        if turns:
            prompt, chosen, rejected = (
                _turns("user", prompt),
                _turns("assistant", chosen),
                _turns("assistant", rejected),
            )
        made = [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
        if form == "kto":
            made = [
                {"prompt": prompt, "completion": chosen, "label": True},
                {"prompt": prompt, "completion": rejected, "label": False},
            ]
        own = {"flipped": row.fate == "flipped"} | ({"margin": row.margin} if form == "reward" else {})
        others = {name: value for name, value in source.columns.get(row.id, {}).items() if name not in own}
        for each in made:
            yield each | own | others


def _turns(role: str, said: Any) -> list[dict[str, str]]:
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    return [{"role": turn["role"], "content": turn["content"]} for turn in said]
