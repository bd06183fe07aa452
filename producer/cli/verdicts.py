"""How a verdict is shown, on a line."""

from dataclasses import dataclass

from rich.markup import escape

from producer.cli.output import console
from producer.cli.pairs import Pair
from schemas.comparison import Comparison


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
