"""Filing a run's batch, or finding the one that the same run made before: nothing is filed twice by accident."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import typer

from producer.cli import following, inputs, runs
from producer.cli.output import Exit, local_time, progress
from producer.client import Client, ClientError, ServerProblem
from schemas.batch import Batch
from schemas.comparison import Comparison
from schemas.ids import batch_id, parse_comparison_id
from schemas.problems import BAD_INPUT_FILE, BAD_OUTPUT_FILE, NO_SERVER, NOT_FOUND, Problem


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for."""

    file: Path
    baseline: Path | None
    completion_window: str
    options: dict[str, Any]
    output: Path
    place: runs.Place
    where: str
    """The options that find the same service again."""
    overwrites: bool = True
    """Whether the output may be written over: not where nobody named it."""
    ends_service: bool = False
    """Whether the service was started for this command, and ends with it."""
    fresh: bool = False
    """Whether it is filed anew where the same run is remembered."""
    name: str | None = None
    """What the file is called at the service; by default its own name."""

    @property
    def key(self) -> str:
        """The name that the run is remembered by."""
        files = [self.file] if self.baseline is None else [self.file, self.baseline]
        return runs.run_key(self.place, files, {**self.options, "completion_window": self.completion_window})

    def come_back(self, batch: Batch) -> str:
        """Say how to come back to a batch that nobody watches now."""
        same = "the same command without --fresh" if self.fresh else "the same command"
        if self.ends_service:
            return f"It goes on when {same} is given again."
        status = f"nightcourt batch status {batch.id}{self.where}"
        return f"It goes on. {same.capitalize()} comes back to it, and `{status}` tells how it stands."


class Filed(NamedTuple):
    """A run's batch, and the name of the run when it was filed: of the files as they were then."""

    batch: Batch
    key: str


def _hinted(error: ClientError, hint: str) -> ServerProblem | Problem:
    if isinstance(error, ServerProblem):
        return ServerProblem(error.document.model_copy(update={"detail": f"{error.document.detail} {hint}"}))
    return Problem(NO_SERVER, f"{error} {hint}")


@contextmanager
def filed(client: Client, asked: Run) -> Iterator[Filed]:
    """Find the batch that the same run made before, or make it.

    Whatever ends this before the batch has ended, in the block too, says how to come back to it.
    """
    batch: Batch | None = None
    try:
        key = asked.key
        with runs.held(asked.place, key, _waiting):
            batch, said = _find_or_file(client, asked, key)
            progress.print(said, soft_wrap=True)
        yield Filed(batch, key)
    except KeyboardInterrupt:
        if batch is None:
            progress.print("Stopped before the file had arrived; nothing was filed.")
        else:
            progress.print(f"Stopped watching {batch.id}. {asked.come_back(batch)}", soft_wrap=True, markup=False)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except ClientError as error:
        if batch is None:
            raise
        raise _hinted(error, f"{batch.id} is filed. {asked.come_back(batch)}") from None


@contextmanager
def _waiting() -> Iterator[None]:
    progress.print("The same command runs already; waiting until it has filed the batch.", soft_wrap=True)
    try:
        yield
    except KeyboardInterrupt:
        progress.print("Stopped waiting; the other one goes on.")
        raise typer.Exit(Exit.INTERRUPTED) from None


def _find_or_file(client: Client, asked: Run, key: str) -> tuple[Batch, str]:
    """Give the batch, and what is said of it."""
    before = runs.recall(asked.place, key)
    batch = None if asked.fresh or before.batch is None else _remembered(client, before.batch)
    if not asked.overwrites and asked.output.exists() and not _of_batch(asked.output, before.batch):
        raise Problem(
            BAD_OUTPUT_FILE,
            f"{asked.output} is there already and is not of this run. Name a file with --output, which is written "
            "over; nothing was filed.",
        )
    if batch is not None:
        filed_at = local_time(batch.created_at)
        return batch, f"Back at {batch.id}, which the same command filed at {filed_at}; --fresh files anew."
    left = runs.Remembered() if asked.fresh or before.batch is not None else before
    return _file(client, asked, key, left)


def _of_batch(results: Path, batch: str | None) -> bool:
    """Tell whether a file holds the results of a batch, by the id that its first line has."""
    with suppress(OSError, ValueError), results.open("rb") as lines:
        key = parse_comparison_id(Comparison.model_validate_json(lines.readline()).id)
        return key is not None and batch_id(key.filing_id) == batch
    return False


def _remembered(client: Client, batch_id: str) -> Batch | None:
    """Find the batch that the same run made before, if it is still there."""
    try:
        return following.keep_asking(partial(client.batch, batch_id))
    except KeyboardInterrupt:
        progress.print(f"Stopped before {batch_id} was found again. The same command comes back to it.", soft_wrap=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except ServerProblem as problem:
        if problem.code == NOT_FOUND.code:
            return None
        raise


def _file(client: Client, asked: Run, key: str, left: runs.Remembered) -> tuple[Batch, str]:
    """Make the batch: of the file that has arrived already, where the same run came that far before."""
    if left.input_file_id:
        try:
            batch = _create(client, asked, key, left)
        except ServerProblem as problem:
            # It was deleted since, and the batch is not there either.
            if all(each.field != "input_file_id" for each in problem.document.errors or []):
                raise
        else:
            return batch, f"Filed as {batch.id}; the file had arrived before."
    with inputs.json_lines(asked.file, asked.baseline) as source:
        if inputs.is_empty(source):
            raise Problem(BAD_INPUT_FILE, f"{asked.file}: {inputs.EMPTY}.")
        try:
            sent = following.send(client, source, asked.name)
        except OSError as error:
            raise Problem(BAD_INPUT_FILE, f"{asked.file}: {error.strerror or error}. Nothing was filed.") from None
    if asked.key != key:
        raise Problem(BAD_INPUT_FILE, f"{asked.file} was changed while it was sent. Nothing was filed; try again.")
    arrived = runs.Remembered(
        file=os.fsencode(asked.file.resolve()).decode(errors="replace"),
        server=asked.place.url,
        input_file_id=sent.id,
        idempotency_key=str(uuid4()),
    )
    batch = _create(client, asked, key, arrived)
    lines = f"{sent.lines} comparison{'' if sent.lines == 1 else 's'}"
    bad = f", {sent.bad_lines} lines that are none" if sent.bad_lines else ""
    return batch, f"Filed as {batch.id}: {lines}{bad}"


def _create(client: Client, asked: Run, key: str, arrived: runs.Remembered) -> Batch:
    """Make the batch of a file that has arrived, once there is room for it. What it is asked for by is noted before."""
    noted = runs.remember(asked.place, key, arrived)
    sure = "The same command makes sure of it." if noted else "`nightcourt batch list` tells."
    make = partial(client.create_batch, arrived.input_file_id, asked.completion_window, **asked.options)
    try:
        batch = following.keep_asking(partial(make, idempotency_key=arrived.idempotency_key))
        if not runs.remember(asked.place, key, arrived.model_copy(update={"batch": batch.id})):
            progress.print(f"The id could not be written to {asked.place.folder}; note it down.", soft_wrap=True)
    except KeyboardInterrupt:
        progress.print(f"Stopped while the batch was being made; it may be there. {sure}", soft_wrap=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except ServerProblem:
        raise
    except ClientError as error:
        raise _hinted(error, f"The batch may be there. {sure}") from None
    return batch
