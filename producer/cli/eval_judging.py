"""Having pairs judged for an eval: as a batch that the same command finds again, or by verdicts given before."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import typer

from infra.local import StartCancelledError
from infra.local.folder import running_stack
from infra.local.supervisor import Stack
from infra.settings import Settings
from producer.cli import following, runs
from producer.cli.batch_run import judge_the_end, refuse
from producer.cli.eval_inputs import read_verdicts
from producer.cli.filing import Run, filed
from producer.cli.output import Exit, progress, temporary_folder
from producer.cli.stack import check_model, say
from producer.client import Client
from producer.evals.rows import Judged, Pair, judged, unmarked
from schemas.batch import Batch, BatchStatus
from schemas.comparison import Comparison
from schemas.problems import BAD_INPUT_FILE, OutcomeError, Problem

_WINDOW = "7d"
_OF_THE_PROMPT = {OutcomeError.CONTEXT_LENGTH_EXCEEDED, OutcomeError.PROFILE_UNFIT}
"""What tells nothing of the comparisons after it."""


class JudgePairs(Protocol):
    """Has pairs judged."""

    def __call__(self, pairs: list[Pair], round_number: int | None = None) -> Judged:
        """Give a row for each pair, in the same order."""
        ...


@dataclass(slots=True)
class Service:
    """A service that judges: pairs go there as one batch, which is remembered by its bytes."""

    client: Client
    place: runs.Place
    options: dict[str, Any]
    where: str
    fresh: bool
    name: str
    """What its batches' files are called there."""
    own: bool
    """Whether it was started for this command, and ends with it."""
    judges: bool = field(default=False, init=False)
    """Whether the last batch has verdicts, of those that tell."""

    def __call__(self, pairs: list[Pair], round_number: int | None = None) -> Judged:
        """Have pairs judged, or come back to where the same pairs were left.

        Raises:
            Problem: not every pair ended with a verdict or a reason why there is none.
        """
        with temporary_folder() as folder:
            file = folder / "pairs.jsonl"
            file.write_bytes(b"".join(_line(pair) for pair in pairs))
            asked = Run(
                file=file,
                baseline=None,
                completion_window=_WINDOW,
                options=self.options,
                output=file,
                place=self.place,
                where=self.where,
                ends_service=self.own,
                fresh=self.fresh,
                name=self.name if round_number is None else f"round {round_number} of {self.name}",
            )
            with filed(self.client, asked) as (made, _):
                batch = following.follow(self.client, made)
                if batch.status is BatchStatus.FAILED and batch.in_progress_at is None:
                    refuse(file, batch)
                if batch.status is BatchStatus.FAILED and round_number is not None and self._may_go_on(batch):
                    first = batch.errors.data[0] if batch.errors else {"code": "unknown", "message": ""}
                    why = f"{first['code']}: {first['message']}".rstrip(".")
                    again = f"`nightcourt batch retry {batch.id}` asks again"
                    progress.print(f"Round {round_number} has no verdict. {why}; {again}", markup=False, soft_wrap=True)
                else:
                    judge_the_end(batch)
                    self.judges = True
                decided = following.keep_asking(partial(self._decided, batch))
        return judged(pairs, {pair.id: decided[pair.custom_id] for pair in pairs}, round_number=round_number)

    def _may_go_on(self, batch: Batch) -> bool:
        """Whether a round that failed may have been a match at fault, and the next one is worth asking for."""
        judged_before, codes = self.judges, {each["code"] for each in batch.errors.data} if batch.errors else set()
        of_the_prompt = codes <= _OF_THE_PROMPT
        self.judges = judged_before and of_the_prompt
        return judged_before or of_the_prompt

    def _decided(self, batch: Batch) -> dict[str, Comparison]:
        return {str(each.custom_id): each for each in self.client.batch_results(batch.id)}


def _line(pair: Pair) -> bytes:
    return json.dumps(pair.line(), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


@dataclass(frozen=True, slots=True)
class Given:
    """Verdicts given before, from a file."""

    file: Path
    comparisons: Mapping[str, Comparison]

    def __call__(self, pairs: list[Pair], round_number: int | None = None) -> Judged:
        """Find the verdict of each pair.

        Raises:
            Problem: a pair has none in the file, or one of other texts.
        """
        # An id without a mark is a line's of a file that `batch run` was given: it is taken at its word.
        names = {
            pair.id: next((name for name in (pair.custom_id, pair.id) if name in self.comparisons), None)
            for pair in pairs
        }
        found = {each: self.comparisons[name] for each, name in names.items() if name is not None}
        missing = [pair.id for pair in pairs if pair.id not in found]
        other = {unmarked(name) for name in self.comparisons}.intersection(missing) if missing else set()
        first = next((each for each in missing if each in other), None)
        if first is not None:
            raise Problem(
                BAD_INPUT_FILE,
                f"{self.file}: these verdicts are of other texts, or the files were given in another order: of "
                f"{len(pairs)} pairs {len(other)} differ, the first is {first}.",
            )
        if missing:
            raise Problem(
                BAD_INPUT_FILE,
                f"{self.file}: of {len(pairs)} pairs {len(missing)} have no line here, the first is {missing[0]}. "
                "Lines are matched by custom_id, or by the number of the line that they were filed from.",
            )
        return judged(pairs, found, round_number=round_number)


@contextmanager
def judging(
    chosen: Settings, *, verdicts: Path | None, options: dict[str, Any], where: str, fresh: bool, name: str
) -> Iterator[JudgePairs]:
    """Open what judges: a file of verdicts, a service that runs, or else the embedded stack for as long as it takes.

    Args:
        chosen: where the service is.
        verdicts: comparison objects, where they are there already.
        options: of the batches.
        where: the options of the command line that find the same service again.
        fresh: file anew, even if the same pairs were filed before.
        name: what the batches' files are called at the service.

    Raises:
        LocalStackError: there is no service, and none can be started.
    """
    if verdicts is not None:
        yield Given(verdicts, read_verdicts(verdicts))
        return
    try:
        with ExitStack() as ends:
            own = chosen.server is None and running_stack(chosen.data_dir) is None
            if own:
                check_model(chosen)
                progress.print("Starting nightcourt")
                ends.enter_context(Stack(chosen, on_event=say))
            place = runs.find_place(chosen)
            client = ends.enter_context(Client(place.url, api_key=place.key))
            yield Service(client, place, options, where, fresh, name, own)
    except StartCancelledError:
        raise typer.Exit(Exit.INTERRUPTED) from None
