"""Pairs to be judged, and rows: what came of each, in the form that everything is counted from."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from producer.evals.style import NO_STYLE, Style, style
from schemas.comparison import Comparison
from schemas.verdict import Ballot, Judge, Winner

Side = Literal["A", "B"]
_EDGE = 1e-9
"""A probability that rounded to 0 or 1 is held to be this far from it: a margin of 20.7 at most."""
_MARK = 12
"""Hexadecimal digits of a hash: as many as never meet by chance."""
_LONGEST = 256
"""Characters that a `custom_id` may have; an id with no room for a mark is sent without."""
BINS = 10
"""Of the reliability table: each a twentieth wide, from a confidence of one half to one."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison to be judged, and what is known of it beforehand."""

    id: str
    """Unique within an eval."""
    prompt: Any
    response_a: Any
    response_b: Any
    label: Side | None = None
    """The better response where somebody said it."""
    subset: str | None = None
    group: str = ""
    """Pairs on the same prompt have the same group, and are drawn together when intervals are made."""
    system_a: str | None = None
    system_b: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it is to be judged, where its line says so."""

    @property
    def custom_id(self) -> str:
        """The name that it is sent by: its id and a mark of its texts, which tells a verdict of other texts."""
        texts = json.dumps([self.prompt, self.response_a, self.response_b], sort_keys=True)
        named = f"{self.id}#{hashlib.sha256(texts.encode()).hexdigest()[:_MARK]}"
        return named if len(named) <= _LONGEST else self.id

    def line(self) -> dict[str, Any]:
        """Give the line that it is in a batch file."""
        return {
            **self.options,
            "custom_id": self.custom_id,
            "prompt": self.prompt,
            "response_a": self.response_a,
            "response_b": self.response_b,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A judged pair without its texts. Its fields and properties are the columns that rows are selected by."""

    id: str
    group: str
    status: str = "succeeded"
    error: str | None = None
    """Why there is no verdict."""
    subset: str | None = None
    system_a: str | None = None
    system_b: str | None = None
    label: Side | None = None
    winner: Winner | None = None
    probability_a: float | None = None
    consistent: bool | None = None
    position_bias: float | None = None
    vote_ab: Side | None = None
    """The response (not the slot) that was preferred in order "ab"."""
    vote_ba: Side | None = None
    """The response that was preferred in order "ba"."""
    log_odds_ab: float | None = None
    """As the model said them in that order, of the slot shown first."""
    log_odds_ba: float | None = None
    style_a: Style = NO_STYLE
    style_b: Style = NO_STYLE
    round: int | None = None
    """Of a tournament, from 1."""
    fate: str | None = None
    """What curating made of it (`producer/evals/curating.py`)."""

    @property
    def decided(self) -> bool:
        """Whether there is a verdict. What has none is in no denominator."""
        return self.winner is not None

    @property
    def systems(self) -> tuple[str | None, str | None]:
        """Both systems."""
        return self.system_a, self.system_b

    @property
    def winner_system(self) -> str | None:
        """The system that won; None for a tie."""
        return {"A": self.system_a, "B": self.system_b}.get(self.winner or "")

    @property
    def length_a(self) -> int:
        """Characters of response A."""
        return self.style_a.length

    @property
    def length_b(self) -> int:
        """Characters of response B."""
        return self.style_b.length

    @property
    def preference_a(self) -> float | None:
        """P(A better), 0 to 1; where the engine gave votes alone, 1, 0 or a half for a tie."""
        if self.winner is None or self.probability_a is not None:
            return self.probability_a
        return {"A": 1.0, "B": 0.0, "tie": 0.5}[self.winner]

    @property
    def preference_b(self) -> float | None:
        """P(B better)."""
        preference = self.preference_a
        return None if preference is None else 1.0 - preference

    @property
    def agreed(self) -> Winner | None:
        """The winner where both orders name it, else a tie (MT-Bench's rule); None without both orders."""
        if self.consistent is None:
            return None
        return self.winner if self.consistent else "tie"

    @property
    def first_slot(self) -> bool | None:
        """Of orders that disagree: whether each preferred what it was shown first. None where they agree."""
        if self.vote_ab is None or self.vote_ba is None or self.vote_ab == self.vote_ba:
            return None
        return self.vote_ab == "A"

    @property
    def both(self) -> bool:
        """Whether both orders gave a vote."""
        return self.vote_ab is not None and self.vote_ba is not None

    @property
    def odds(self) -> bool:
        """Whether the log-odds of both orders are known."""
        return self.log_odds_ab is not None and self.log_odds_ba is not None

    @property
    def log_odds_a(self) -> float | None:
        """The preference d for A, in log-odds and at no temperature: (s1 - s2) / 2, or the one order's s."""
        sides = [self.log_odds_ab, None if self.log_odds_ba is None else -self.log_odds_ba]
        known = [side for side in sides if side is not None]
        return sum(known) / len(known) if known else None

    @property
    def in_vain(self) -> bool:
        """Whether the judge was asked and gave no verdict; what was cancelled or expired was never asked."""
        return not self.decided and self.status not in {"cancelled", "expired"}

    @property
    def asked_ab(self) -> bool:
        """Whether order "ab" was asked, as far as can be told: it gave a vote, or there is no verdict at all."""
        return self.vote_ab is not None or self.in_vain

    @property
    def asked_ba(self) -> bool:
        """Whether order "ba" was asked, as far as can be told: it gave a vote, or there is no verdict at all."""
        return self.vote_ba is not None or self.in_vain

    @property
    def labelled(self) -> bool:
        """Whether there is a label, and a verdict to hold against it."""
        return self.label is not None and self.decided

    @property
    def labelled_ab(self) -> bool:
        """Whether there is a label, and a vote in order "ab"."""
        return self.label is not None and self.vote_ab is not None

    @property
    def labelled_ba(self) -> bool:
        """Whether there is a label, and a vote in order "ba"."""
        return self.label is not None and self.vote_ba is not None

    @property
    def labelled_both(self) -> bool:
        """Whether there is a label, and a vote in each order."""
        return self.labelled_ab and self.labelled_ba

    @property
    def correct(self) -> bool | None:
        """Whether the verdict is the label. A tie is not."""
        return self.winner == self.label if self.labelled else None

    @property
    def correct_ab(self) -> bool | None:
        """Whether order "ab" alone preferred the label."""
        return self.vote_ab == self.label if self.labelled_ab else None

    @property
    def correct_ba(self) -> bool | None:
        """Whether order "ba" alone preferred the label."""
        return self.vote_ba == self.label if self.labelled_ba else None

    @property
    def correct_both(self) -> bool | None:
        """Whether each order preferred the label."""
        return self.vote_ab == self.vote_ba == self.label if self.labelled_both else None

    @property
    def scored(self) -> bool:
        """Whether there is a label, and a probability to hold against it."""
        return self.label is not None and self.probability_a is not None

    @property
    def confidence(self) -> float | None:
        """The probability of the likelier response, one half to one."""
        return None if self.probability_a is None else max(self.probability_a, 1.0 - self.probability_a)

    @property
    def bin(self) -> int | None:
        """Which bin of the reliability table the confidence falls into, from 0."""
        return None if self.confidence is None else min(int((self.confidence - 0.5) * 2 * BINS), BINS - 1)

    @property
    def likelier_correct(self) -> bool | None:
        """Whether the likelier response is the label: the winner, or A where they are equally likely."""
        if self.label is None or self.probability_a is None:
            return None
        return (self.probability_a >= 0.5) == (self.label == "A")  # noqa: PLR2004 - even odds

    @property
    def brier(self) -> float | None:
        """(1 - the probability given to the label) squared."""
        return None if self.label_probability is None else (1.0 - self.label_probability) ** 2

    @property
    def log_loss(self) -> float | None:
        """-log of the probability given to the label, which is held to be no less than 1e-15."""
        return None if self.label_probability is None else -math.log(max(self.label_probability, 1e-15))

    @property
    def label_probability(self) -> float | None:
        """The probability given to the label."""
        if self.label is None or self.probability_a is None:
            return None
        return self.probability_a if self.label == "A" else 1.0 - self.probability_a

    @property
    def longer(self) -> Side | None:
        """The longer response; None where both have as many characters."""
        return _more(self.length_a, self.length_b)

    @property
    def longer_won(self) -> bool | None:
        """Whether the longer response won; None without a winner, or without a longer one."""
        return _won(self.winner, self.longer)

    @property
    def label_longer(self) -> bool | None:
        """Whether the label is the longer response; None without a label, or without a longer one."""
        return _won(self.label, self.longer)

    @property
    def more_formatted_won(self) -> bool | None:
        """Whether the response with more headers, list items and bold runs won; None where there is no such."""
        return _won(self.winner, _more(sum(self.style_a[1:]), sum(self.style_b[1:])))

    @property
    def chosen(self) -> Side | None:
        """After curating: the response that is the better in what was written out; None where it was left out."""
        if self.fate == "flipped":
            return "B" if self.label == "A" else "A"
        return self.label if self.fate == "kept" else None

    @property
    def chosen_longer(self) -> bool | None:
        """After curating: whether the better is the longer; None as for `label_longer`."""
        return _won(self.chosen, self.longer)

    @property
    def margin(self) -> float | None:
        """After curating: the log-odds of the better over the other, at the judge's temperature."""
        if self.chosen is None or self.probability_a is None:
            return None
        chance = min(max(self.probability_a, _EDGE), 1.0 - _EDGE)
        return math.log(chance / (1.0 - chance)) * (1 if self.chosen == "A" else -1)

    def as_dict(self) -> dict[str, Any]:
        """Give all columns, those that are worked out too."""
        return asdict(self) | {name: getattr(self, name) for name in DERIVED}


def _more(a: int, b: int) -> Side | None:
    return None if a == b else ("A" if a > b else "B")


def _won(better: Winner | None, side: Side | None) -> bool | None:
    return None if side is None or better not in {"A", "B"} else better == side


DERIVED = tuple(name for name, value in vars(Row).items() if isinstance(value, property) and name[0] != "_")
COLUMNS = tuple(each.name for each in fields(Row)) + DERIVED


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows, and the judges that their verdicts were made by, those of the first row first."""

    rows: list[Row]
    judges: list[Judge]

    def caveat(self) -> str | None:
        """Say what a reader must mind of these verdicts; every output shows it."""
        said = list(dict.fromkeys(judge.caveat for judge in self.judges if judge.caveat))
        decided = [row for row in self.rows if row.decided]
        if alone := sum(not row.both for row in decided):
            said.append(
                f"{alone} of {len(decided)} verdicts were asked in one order alone, and hold a leaning to a slot."
            )
        return " ".join(said) or None


def unmarked(custom_id: str) -> str:
    """Take the mark of the texts off a pair's `custom_id`."""
    name, hash_sign, mark = custom_id.rpartition("#")
    return name if hash_sign and len(mark) == _MARK else custom_id


def judged(pairs: Iterable[Pair], comparisons: Mapping[str, Comparison], *, round_number: int | None = None) -> Judged:
    """Put comparisons beside the pairs that they came from.

    Args:
        pairs: what was sent.
        comparisons: what came back, by the pair's id.
        round_number: of a tournament.

    Raises:
        KeyError: a pair has not come back.
    """
    rows: list[Row] = []
    judges: dict[str, Judge] = {}
    for pair in pairs:
        comparison = comparisons[pair.id]
        rows.append(_row(pair, comparison, round_number))
        if comparison.verdict is not None:
            judge = comparison.verdict.judge
            judges.setdefault(judge.model_dump_json(), judge)
    return Judged(rows, list(judges.values()))


def _row(pair: Pair, comparison: Comparison, round_number: int | None) -> Row:
    verdict = comparison.verdict
    ballots: dict[str, Ballot] = {} if verdict is None else {each.order: each for each in verdict.ballots}
    ab, ba = ballots.get("ab"), ballots.get("ba")
    return Row(
        id=pair.id,
        group=pair.group or pair.id,
        status=comparison.status.value,
        error=comparison.error.code if comparison.error else None,
        subset=pair.subset,
        system_a=pair.system_a,
        system_b=pair.system_b,
        label=pair.label,
        winner=verdict.winner if verdict else None,
        probability_a=verdict.probability_a if verdict else None,
        consistent=verdict.consistent if verdict else None,
        position_bias=verdict.position_bias if verdict else None,
        vote_ab=ab.choice if ab else None,
        vote_ba=ba.choice if ba else None,
        log_odds_ab=ab.log_odds if ab else None,
        log_odds_ba=ba.log_odds if ba else None,
        style_a=style(answer(pair.response_a)),
        style_b=style(answer(pair.response_b)),
        round=round_number,
    )


def answer(response: Any) -> str:
    """Give a response as text: of a conversation, what the assistant said."""
    if isinstance(response, str):
        return response
    return "\n\n".join(turn["content"] for turn in response if turn["role"] == "assistant")


def subsets(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Part rows by their subset, sorted by its name; those without one are in none."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if row.subset is not None:
            parts.setdefault(row.subset, []).append(row)
    return dict(sorted(parts.items()))
