"""File pairs with a server and watch them being decided."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from producer.cli.following import keep_asking
from producer.cli.output import progress
from producer.cli.pairs import Pair
from producer.cli.verdicts import Decided
from producer.client import Client
from schemas.comparison import Comparison
from schemas.problems import NOT_DECIDED, Problem

_POLL_SECONDS = 20.0


def file_each(client: Client, pairs: Sequence[Pair]) -> Iterator[Comparison]:
    """File every pair, in order; each is safe in Postgres once it is given."""
    return (_labelled(client.submit(pair.request), pair) for pair in pairs)


def watch(client: Client, pairs: Sequence[Pair], filed: Sequence[Comparison], *, seconds: float) -> Iterator[Decided]:
    """Give each comparison as it ends, in the order of filing, with a progress bar where there is a terminal.

    Raises:
        Problem: the time is up; the detail says what stays filed.
    """
    give_up_at = time.monotonic() + seconds
    bar = Progress(
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=progress,
        transient=True,
        disable=not progress.is_terminal,
    )
    with bar:
        task = bar.add_task("judging", total=len(filed))
        for pair, comparison in zip(pairs, filed, strict=True):
            current = comparison
            while not current.status.final:
                left = give_up_at - time.monotonic()
                if left <= 0:
                    raise Problem(
                        NOT_DECIDED,
                        f"{current.id} is still {current.status} after {seconds:g} s. Everything stays filed and will "
                        "be judged; is a worker running? `nightcourt doctor` tells.",
                    )
                current = keep_asking(partial(_held, client, current.id, give_up_at), by=give_up_at)
            bar.advance(task)
            yield Decided(pair=pair, comparison=_labelled(current, pair))


def _labelled(comparison: Comparison, pair: Pair) -> Comparison:
    """Say beside a verdict which response is the better: of what is filed singly the service is not told it."""
    return comparison.model_copy(update={"label": pair.label})


def _held(client: Client, comparison_id: str, by: float) -> Comparison:
    return client.get(comparison_id, wait=max(0.0, min(by - time.monotonic(), _POLL_SECONDS)))
