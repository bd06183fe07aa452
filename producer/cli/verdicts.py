"""How verdicts are shown: a line each, and a summary that never leaves out what judge it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from producer.cli.output import console
from producer.cli.pairs import Pair
from producer.cli.report import Rates
from schemas.comparison import Comparison
from schemas.states import ComparisonStatus


@dataclass(frozen=True, slots=True)
class Decided:
    """A comparison that has ended, beside the pair that it was filed from."""

    pair: Pair
    comparison: Comparison

    @property
    def correct(self) -> bool | None:
        """Whether the verdict is the gold label; None where there is no verdict or no label. A tie is not correct."""
        if self.comparison.verdict is None or self.pair.label is None:
            return None
        return self.comparison.verdict.winner == self.pair.label


def summarise(decided: Sequence[Decided]) -> dict[str, Any]:
    """Count what came out. Rates are None where nothing was there to count."""
    verdicts = [each.comparison.verdict for each in decided if each.comparison.verdict is not None]
    overall, topics = Rates(), dict[str, Rates]()
    for each in decided:
        verdict = each.comparison.verdict
        said = None if verdict is None else verdict.model_dump(include={"winner", "consistent"})
        overall.add(said, each.pair.label)
        if each.pair.topic is not None:
            topics.setdefault(each.pair.topic, Rates()).add(said, each.pair.label)
    counts = {
        status.value: sum(each.comparison.status == status for each in decided)
        for status in ComparisonStatus
        if status.final
    }
    judge = verdicts[0].judge if verdicts else None
    return {
        "object": "summary",
        "total": len(decided),
        **counts,
        **overall.as_json(),
        "topics": {name: rates.as_json() for name, rates in topics.items() if rates.labelled},
        "reused": sum(verdict.usage.reused for verdict in verdicts),
        "gpu_seconds": sum(verdict.usage.gpu_seconds for verdict in verdicts),
        "prompt_tokens": sum(verdict.usage.prompt_tokens for verdict in verdicts),
        "cached_tokens": sum(verdict.usage.cached_tokens for verdict in verdicts),
        "judge": judge.model_dump(mode="json") if judge else None,
        "caveat": judge.caveat if judge else None,
    }


def print_line(decided: Decided) -> None:
    """Print one comparison: the winner, how sure, both ballots, whether they agree, and the gold label."""
    comparison, pair = decided.comparison, decided.pair
    name = escape(comparison.custom_id or comparison.id)
    verdict = comparison.verdict
    if verdict is None:
        reason = comparison.error
        said = escape(f"{reason.code}: {reason.message}") if reason else ""
        console.print(f"{name:<20} [yellow]{comparison.status}[/] {said}", soft_wrap=True)
        return
    ballots = "  ".join(
        f"{ballot.order} {ballot.log_odds:+6.2f}" if ballot.log_odds is not None else f"{ballot.order} {ballot.vote:>6}"
        for ballot in verdict.ballots
    )
    agree = {True: "[green]orders agree[/]   ", False: "[yellow]orders disagree[/]", None: "one order      "}
    sure = f"P(A) {verdict.probability_a:.2f}" if verdict.probability_a is not None else "votes only"
    gold = ""
    if pair.label is not None:
        gold = f"  gold {pair.label} " + ("[green]right[/]" if decided.correct else "[red]wrong[/]")
    console.print(
        f"{name:<20} [bold]{verdict.winner:<3}[/]  {sure}  ballots {ballots}  {agree[verdict.consistent]}{gold}",
        soft_wrap=True,
    )


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary, and what the judge is worth."""
    rest = ", ".join(f"{summary[status]} {status}" for status in ("errored", "cancelled", "expired") if summary[status])
    console.print()
    console.print(
        f"[bold]{summary['total']} comparisons[/]: {summary['succeeded']} succeeded{', ' + rest if rest else ''}"
    )
    if summary["labelled"]:
        console.print(
            f"Accuracy against the gold labels: {summary['correct']} of {summary['labelled']} "
            f"({summary['accuracy']:.1%})"
        )
    if summary["topics"]:
        shares = [f"{escape(name)} {each['correct']} of {each['labelled']}" for name, each in summary["topics"].items()]
        console.print(f"By topic: {', '.join(shares)}", soft_wrap=True)
    if summary["both_orders"]:
        console.print(
            f"Swap consistency, both orders naming the same winner: {summary['consistent']} of "
            f"{summary['both_orders']} ({summary['swap_consistency']:.1%})"
        )
    if summary["reused"]:
        console.print(f"{summary['reused']} of the verdicts were there already: the same comparison, the same judge")
    judge = summary["judge"]
    if judge:
        console.print(
            f"Judge: {escape(judge['model'])} ({judge['quantisation']}), profile {judge['profile']}, "
            f"engine {judge['engine']}; {summary['gpu_seconds']:.1f} engine seconds, {summary['prompt_tokens']} prompt "
            f"tokens, {summary['cached_tokens']} of them from the cache",
            soft_wrap=True,
        )
    if summary["caveat"]:
        console.print(f"[bold yellow]Mind:[/] {escape(summary['caveat'])}", soft_wrap=True)
