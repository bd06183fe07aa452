"""What came of comparisons, added up one by one, so that a million lines take no more memory than one."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from pydantic_core import from_json
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from producer.cli.inputs import Known
from producer.cli.output import screen
from schemas.ids import parse_comparison_id
from schemas.states import OutcomeStatus

_SUBSETS = 40


@dataclass(slots=True)
class Rates:
    """How often the judge was right, and of one mind. What has no verdict or no label is in no rate."""

    total: int = 0
    labelled: int = 0
    correct: int = 0
    both_orders: int = 0
    consistent: int = 0

    def add(self, verdict: dict[str, Any] | None, label: str | None) -> None:
        """Count one line. A tie is not correct."""
        self.total += 1
        if verdict is None:
            return
        if label is not None:
            self.labelled += 1
            self.correct += verdict["winner"] == label
        if verdict["consistent"] is not None:
            self.both_orders += 1
            self.consistent += verdict["consistent"]

    @property
    def accuracy(self) -> float | None:
        """The share of labelled verdicts that are the label."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def swap_consistency(self) -> float | None:
        """The share of verdicts in both orders that name the same winner twice."""
        return self.consistent / self.both_orders if self.both_orders else None

    def as_json(self) -> dict[str, Any]:
        """Give the counts and the rates."""
        return {
            "labelled": self.labelled,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "both_orders": self.both_orders,
            "consistent": self.consistent,
            "swap_consistency": self.swap_consistency,
        }


@dataclass(slots=True)
class Report:
    """The sums over results."""

    overall: Rates = field(default_factory=Rates)
    subsets: dict[str, Rates] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    winners: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    gpu_seconds: float = 0.0
    judges: list[dict[str, Any]] = field(default_factory=list)
    filed_at: datetime | None = None
    decided_at: datetime | None = None

    def add(self, comparison: dict[str, Any], label: str | None, subset: str | None) -> None:
        """Count one result.

        Args:
            comparison: a comparison object.
            label: the better response, where the input says it.
            subset: which part of the input it belongs to.
        """
        verdict = comparison["verdict"]
        self.statuses[comparison["status"]] += 1
        self.overall.add(verdict, label)
        if subset is not None:
            self.subsets.setdefault(subset, Rates()).add(verdict, label)
        if verdict is None:
            self.reasons[comparison["error"]["code"]] += 1
            return
        self.winners[verdict["winner"]] += 1
        usage = verdict["usage"]
        self.reused += usage["reused"]
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["cached_tokens"]
        self.gpu_seconds += usage["gpu_seconds"]
        if verdict["judge"] not in self.judges:
            self.judges.append(verdict["judge"])
        self.filed_at = self.filed_at or datetime.fromisoformat(comparison["created_at"])
        decided_at = datetime.fromisoformat(comparison["decided_at"])
        self.decided_at = max(self.decided_at or decided_at, decided_at)

    @property
    def pairs_per_second(self) -> float | None:
        """Verdicts a second, from the filing to the last of them."""
        if self.filed_at is None or self.decided_at is None or self.decided_at <= self.filed_at:
            return None
        return self.statuses[OutcomeStatus.SUCCEEDED] / (self.decided_at - self.filed_at).total_seconds()

    def as_json(self) -> dict[str, Any]:
        """Give the summary as an object."""
        judge = self.judges[0] if self.judges else None
        return {
            "object": "summary",
            "total": self.overall.total,
            **{status.value: self.statuses[status] for status in OutcomeStatus},
            "reused": self.reused,
            "reasons": dict(self.reasons.most_common()),
            "winners": {winner: self.winners[winner] for winner in ("A", "B", "tie")},
            **self.overall.as_json(),
            "subsets": {
                name: {"total": rates.total, **rates.as_json()} for name, rates in sorted(self.subsets.items())
            },
            "pairs_per_second": self.pairs_per_second,
            "gpu_seconds": self.gpu_seconds,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "judge": judge,
            "caveat": " ".join(dict.fromkeys(each["caveat"] for each in self.judges if each["caveat"])) or None,
            "other_judges": self.judges[1:],
        }

    def show(self, console: Console, systems: tuple[str, str] | None = None) -> None:
        """Print the summary for a person."""
        console.print()
        counts = [f"{self.statuses[status]} {status}" for status in OutcomeStatus if self.statuses[status]]
        if self.reused:
            counts.append(f"{self.reused} of them answered from verdicts that were stored before")
        decided = ", ".join(counts) or "none decided"
        console.print(f"[bold]{self.overall.total} comparisons[/]: {decided}", soft_wrap=True)
        for code, lines in self.reasons.most_common():
            console.print(f"  {lines} without a verdict: {escape(code)}")
        rates = self.overall
        if rates.labelled:
            console.print(f"Accuracy against the gold labels: {_share(rates.correct, rates.labelled)}")
        if rates.both_orders:
            share = _share(rates.consistent, rates.both_orders)
            console.print(f"Swap consistency, both orders naming the same winner: {share}")
        if len(self.subsets) > 1:
            screen(console).print(self._table())
        self._show_winners(console, systems)
        rate = self.pairs_per_second
        paced = f"{rate:.1f} pairs a second from filing to the last verdict; " if rate else ""
        console.print(
            f"{paced}{self.gpu_seconds:.1f} engine seconds, {self.prompt_tokens} prompt tokens, "
            f"{self.cached_tokens} of them from the cache",
            soft_wrap=True,
        )
        for judge in self.judges:
            console.print(
                f"Judge: {escape(judge['model'])} ({judge['quantisation']}), profile {judge['profile']}, engine "
                f"{judge['engine']}",
                soft_wrap=True,
            )
            if judge["caveat"]:
                console.print(f"[bold yellow]Mind:[/] {escape(judge['caveat'])}", soft_wrap=True)

    def _show_winners(self, console: Console, systems: tuple[str, str] | None) -> None:
        succeeded = self.statuses[OutcomeStatus.SUCCEEDED]
        if systems is None or not succeeded:
            return
        names = [(escape(systems[0]), "A"), (escape(systems[1]), "B"), ("tie", "tie")]
        shares = [f"{name} {self.winners[key]} ({self.winners[key] / succeeded:.1%})" for name, key in names]
        console.print(f"Preferred: {', '.join(shares if self.winners['tie'] else shares[:2])}", soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("subset", overflow="fold")
        for name in ("lines", "accuracy", "swap consistency"):
            table.add_column(name, justify="right")
        for name, rates in islice(sorted(self.subsets.items()), _SUBSETS):
            shares = _share(rates.correct, rates.labelled), _share(rates.consistent, rates.both_orders)
            table.add_row(escape(name), str(rates.total), *shares)
        if len(self.subsets) > _SUBSETS:
            table.add_row(f"and {len(self.subsets) - _SUBSETS} more (--json has all)")
        return table


def _share(hits: int, of: int) -> str:
    return f"{hits} of {of} ({hits / of:.1%})" if of else ""


def add_up(report: Report, results: Iterable[bytes], known: Iterator[Known]) -> Iterator[bytes]:
    """Count results beside the input that they came from, both in the order of the file, and hand them on.

    Args:
        report: where to count.
        results: comparison objects as JSON.
        known: labels and subsets by line number.
    """
    beside = next(known, None)
    for raw in results:
        comparison = from_json(raw)
        key = parse_comparison_id(comparison["id"])
        line = key.line if key else 0
        while beside is not None and beside.line < line:
            beside = next(known, None)
        if beside is not None and beside.line == line:
            report.add(comparison, beside.label, beside.subset)
        else:
            report.add(comparison, None, None)
        yield raw
