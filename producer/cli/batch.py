"""`nightcourt batch`: leave a file of pairs to be judged, and come back for the results."""

from pathlib import Path
from typing import Annotated

import typer

from producer.cli.batch_run import run
from producer.cli.following import describe
from producer.cli.options import DataDir, Server, id_like
from producer.cli.output import console, local_time, print_json, progress, write_lines
from producer.cli.server import connected
from schemas.batch import Batch

app = typer.Typer(
    help="Leave a file of pairs to be judged, and come back for the results.",
    no_args_is_help=True,
)

_SHOWN = 10

BatchId = Annotated[
    str, typer.Argument(metavar="ID", help="The batch's id, batch_ and 32 digits.", callback=id_like("batch_"))
]
AsJson = Annotated[bool, typer.Option("--json", help="The batch as an object, for a program.")]

app.command()(run)


@app.command()
def status(batch_id: BatchId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Tell how a batch stands.

    Example: nightcourt batch status batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f --json
    """
    with connected(server, data_dir) as client:
        _show(client.batch(batch_id), as_json=as_json)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(help="Begin after this batch's id.")] = None,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object a line, for a program.")] = False,
) -> None:
    """List batches, newest first.

    Example: nightcourt batch list --limit 5
    """
    with connected(server, data_dir) as client:
        page = client.batches(limit=limit, after=after)
    for batch in page.data:
        if as_json:
            print_json(batch.model_dump(mode="json"))
        else:
            console.print(f"{batch.id}  {local_time(batch.created_at)}  {_line(batch)}", soft_wrap=True, markup=False)
    if as_json:
        return
    if page.has_more:
        progress.print(f"There are more: --after {page.last_id}", soft_wrap=True)
    if not page.data:
        progress.print("There is no older batch." if after else "There is no batch.")


@app.command()
def pause(batch_id: BatchId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Hold a batch. Nothing decided is lost.

    Example: nightcourt batch pause batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show(client.pause_batch(batch_id), as_json=as_json)


@app.command()
def resume(batch_id: BatchId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Let a paused batch go on.

    Example: nightcourt batch resume batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show(client.resume_batch(batch_id), as_json=as_json)


@app.command()
def cancel(batch_id: BatchId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Call a batch off. What was decided stays.

    Example: nightcourt batch cancel batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show(client.cancel_batch(batch_id), as_json=as_json)


@app.command()
def retry(batch_id: BatchId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Judge the errored lines of an ended batch again, and those alone.

    Example: nightcourt batch retry batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        batch = client.retry_batch(batch_id)
    _show(batch, as_json=as_json)
    if batch.status.final and not as_json:
        _say_that_nothing_is_retried(batch)


@app.command()
def results(
    batch_id: BatchId,
    output: Annotated[Path, typer.Option(help="Where to write them; - for stdout.")] = Path("-"),
    server: Server = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same: results are JSON lines.")] = False,  # noqa: ARG001
) -> None:
    """Write what has been decided so far, a comparison object a line, in the order of the file.

    Example: nightcourt batch results batch_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f --output results.jsonl
    """
    with connected(server, data_dir) as client:
        write_lines(client.batch_result_lines(batch_id), output)


def _say_that_nothing_is_retried(batch: Batch) -> None:
    counts = batch.request_counts
    why = "what errored is no comparison" if counts.errored or batch.errors else "nothing errored"
    progress.print(f"{why.capitalize()}, so nothing is judged again.")
    if counts.cancelled or counts.expired:
        progress.print(
            "What was cancelled or expired is filed anew by `nightcourt batch run FILE --fresh`; what was judged "
            "already is not judged twice.",
            soft_wrap=True,
        )


def _line(batch: Batch) -> str:
    said = describe(batch)
    held = " (paused)" if batch.paused and not batch.status.final else ""
    counts = f"{batch.progress.decided} of {batch.request_counts.total} decided"
    return f"{batch.status}{held}  {batch.input_file_name}  {counts}{', ' if said else ''}{said}"


def _show(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(batch.model_dump(mode="json"))
        return
    console.print(f"{batch.id}  {_line(batch)}", soft_wrap=True, markup=False)
    for each in batch.errors.data[:_SHOWN] if batch.errors else []:
        line = f"line {each['line']}: " if each["line"] else ""
        console.print(f"  {line}{each['code']}: {each['message']}", soft_wrap=True, markup=False)
    if batch.usage is not None and batch.usage.total_tokens:
        used = batch.usage
        console.print(
            f"  {used.gpu_seconds:.1f} engine seconds, {used.input_tokens} prompt tokens, "
            f"{used.input_tokens_details['cached_tokens']} of them from the cache",
            soft_wrap=True,
        )
    if not batch.status.final and batch.expires_at is not None:
        console.print(f"  what is undecided at {local_time(batch.expires_at)} expires")
