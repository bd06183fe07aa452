"""Following a batch: bars for what is sent, judged and read back; plain lines where there is no terminal."""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from producer.cli.output import progress
from producer.client import Client, ClientError, ServerProblem
from schemas.batch import Batch, File

_SOON, _OFTEN = 0.1, 1.0
_AWAY = 3.0
_PLAIN_SECONDS, _WAITING_SECONDS = 30.0, 600.0
"""How often a line is printed where nobody sees a bar, and how often the same reason for waiting."""

_NUMBERS = re.compile(r"\d+")
"""Of a reason for waiting that counts down: it is the same one."""

_T = TypeVar("_T")


def keep_asking(ask: Callable[[], _T], by: float = math.inf) -> _T:
    """Ask until there is an answer, and say once why it takes longer. A service may be away for a while at night.

    Args:
        ask: makes the calls, each of which the client repeats a few times by itself.
        by: when to give up.

    Raises:
        ClientError: it will not go well another time either, or the time is up.
    """
    told = False
    while True:
        try:
            return ask()
        except ClientError as error:
            if not error.passing or time.monotonic() + _AWAY >= by:
                raise
            if not told:
                said = f"{error} Trying until it answers."
                if isinstance(error, ServerProblem) and error.status == HTTPStatus.TOO_MANY_REQUESTS:
                    said = f"Waiting for room: {error.document.detail}"
                progress.print(said, markup=False, soft_wrap=True)
                told = True
        time.sleep(_AWAY)


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=progress, transient=True, disable=not progress.is_terminal)


def send(client: Client, file: Path, name: str | None = None) -> File:
    """Upload a file, with a bar; by default it is called there as it is here."""
    with _bar(TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task("uploading", total=None)
        return client.upload(
            file, filename=name, on_progress=lambda sent, of: bar.update(task, completed=sent, total=of)
        )


def follow(client: Client, batch: Batch) -> Batch:
    """Show how a batch gets on until it has ended; returns it as it ended."""
    columns = (
        TextColumn("judging"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    every, spoken_at = _SOON, -math.inf
    said: str | None = None
    before: str | None = None
    began, had = time.monotonic(), batch.progress.decided
    with _bar(*columns) as bar:
        task = bar.add_task("judging", total=batch.request_counts.total, told="")
        while not batch.status.final:
            told = describe(batch, seen=(batch.progress.decided - had) / max(time.monotonic() - began, 0.001))
            bar.update(task, completed=batch.progress.decided, told=told)
            waits = _NUMBERS.sub("", batch.progress.waiting_for or "") or None
            stays = waits == before and waits != said  # a reason that is gone at the next glance is none
            quiet = _PLAIN_SECONDS if waits is None or waits != said else _WAITING_SECONDS
            if bar.disable and every == _OFTEN and (stays or time.monotonic() > spoken_at + quiet):
                counts = f"{batch.progress.decided} of {batch.request_counts.total} judged"
                progress.print(f"{counts}{'; ' if told else ''}{told}", markup=False, soft_wrap=True)
                spoken_at, said = time.monotonic(), waits
            before = waits
            time.sleep(every)
            every = min(2 * every, _OFTEN)
            batch = keep_asking(partial(client.batch, batch.id))
    return batch


def read_back(lines: Iterable[bytes], total: int) -> Iterator[bytes]:
    """Hand results on, with a bar."""
    with _bar(TextColumn("reading results"), BarColumn(), MofNCompleteColumn()) as bar:
        yield from bar.track(lines, total=total)


def describe(batch: Batch, *, seen: float = 0.0) -> str:
    """Say how a batch gets on, in a few words: what it waits for, or its rate and how long it takes still.

    Args:
        batch: as it stands.
        seen: lines a second as we saw them ourselves, for as long as the service tells no rate.
    """
    now, counts = batch.progress, batch.request_counts
    said = []
    rate, left = now.lines_per_second or seen, now.eta_seconds
    if now.waiting_for is not None:
        said.append(f"waiting: {now.waiting_for}")
    elif rate and not batch.status.final:
        seconds = (counts.total - now.decided) / rate if left is None else left
        said.append(f"{rate:.3g} a second, {timedelta(seconds=round(seconds))} left")
    if counts.failed:
        said.append(f"{counts.failed} without a verdict")
    return ", ".join(said)
