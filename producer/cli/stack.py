"""`nightcourt up` and `nightcourt demo`: the embedded stack, for as long as it is wanted."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.markup import escape
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from infra import logs, settings
from infra.calibration import read_calibration
from infra.environment import unknown_settings
from infra.local import StartCancelledError
from infra.local.folder import running_stack
from infra.local.supervisor import Stack, run_stack
from infra.settings import Settings
from producer.cli import dashboard
from producer.cli.doctor import describe_model
from producer.cli.options import again, finite
from producer.cli.output import Exit, progress
from producer.cli.pairs import example_file, read_pairs
from producer.cli.submit import conclude, show
from producer.cli.watch import file_each, watch
from producer.client import Client
from schemas.problems import BAD_SETTING, Problem

log = structlog.get_logger()

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept; the user's data folder by default.")]


def say(kind: str, /, **fields: object) -> None:
    """Tell a person what happens to the stack, on standard error."""
    if kind == "started":
        again = " again" if fields.get("again") else ""
        progress.print(f"  [green]up{again}[/]  {fields['name']} [dim](pid {fields['pid']})[/]")
    elif kind == "died":
        progress.print(
            f"  [red]down[/] {fields['name']}: {escape(str(fields['reason']))}; again in {fields['restart_in']} s, "
            f"its log is {escape(str(fields['log']))}",
            soft_wrap=True,
        )
    elif kind == "waiting":
        progress.print(f"  [dim]waiting: {escape(str(fields['detail']))}[/]", soft_wrap=True)
    elif kind == "stopping":
        progress.print("Ending; work in hand is finished first. Ctrl-C again hurries.")


def check_model(chosen: Settings) -> None:
    """Tell of a model that cannot be before anything is started: a worker would be started five times over it."""
    try:
        describe_model(chosen)
    except (OSError, ValueError) as error:
        raise Problem(BAD_SETTING, f"NIGHTCOURT_MODEL: {error}.") from None
    try:
        if chosen.calibration_file is not None:
            read_calibration(chosen.calibration_file)
    except ValueError as error:
        raise Problem(BAD_SETTING, f"NIGHTCOURT_CALIBRATION_FILE: {error}.") from None


def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 for any free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the API. Whoever reaches it needs a key.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run the whole service here: Postgres, Redis, API, dispatcher and a worker with a small real model.

    Ctrl-C ends it; what was filed is there the next time.

    Example: nightcourt up --port 8300
    """
    chosen = settings.load(host=host, data_dir=data_dir)
    logs.configure(process="up", level="warning", style=chosen.log_format)
    for name, meant in unknown_settings().items():
        progress.print(f"{name} is no setting{f'; {meant} is' if meant else ''}.", markup=False, soft_wrap=True)
    check_model(chosen)
    progress.print("Starting nightcourt")
    here = again(None, data_dir)

    def tell(kind: str, /, **fields: object) -> None:
        say(kind, **fields)
        if kind == "ready":
            _welcome(chosen, Path(str(fields["folder"])), here, usual=port is None)

    was_ready = run_stack(Stack(chosen, port=port, on_event=tell))
    if not was_ready:
        progress.print("Ended before it was ready.")
        raise typer.Exit(Exit.INTERRUPTED)
    progress.print("Ended.")


def _welcome(chosen: Settings, folder: Path, here: str, *, usual: bool) -> None:
    """Tell a person what runs, and how to come in.

    Args:
        chosen: what it runs by.
        folder: where everything is kept.
        here: the option that has commands find it.
        usual: whether it was to listen on the usual port.
    """
    if (info := running_stack(folder)) is None:
        return

    def add(text: str) -> None:
        progress.print(text, soft_wrap=True)

    add(f"[bold green]Ready[/]: {info.api_url}  [dim](documentation at {info.api_url}/docs)[/]")
    if usual and not info.api_url.endswith(f":{chosen.port}"):
        add(f"[yellow]Port {chosen.port} is busy[/]: what listens there is something else.")
    add(f"Judge: {escape(_judge(chosen))}")
    try:
        again = f"`nightcourt dashboard{here}`"
        add(
            f"Dashboard: {dashboard.invitation(info)}  [dim](good once, within ten minutes; then {again}, or sign in "
            "with the key)[/]"
        )
        add(f"[dim]Key: in {folder}/key; the command line here finds it by itself[/]")
    except IntegrityError:
        add(
            "[yellow]The key of this stack is not good any more[/], and its tenant may have been purged: "
            f"`nightcourt keys create --tenant NAME{here}` makes one, which NIGHTCOURT_KEY takes."
        )
    except SQLAlchemyError:
        add(f"Dashboard: {info.api_url}/dashboard/  [dim](sign in with the key in {folder}/key)[/]")
    add(f"[dim]Metrics: {info.api_url}/metrics, and of the other processes where {folder}/prometheus.json says[/]")
    add(f"[dim]Try: nightcourt submit examples/first-docket.jsonl{here}. Ctrl-C ends it.[/]")


def _judge(chosen: Settings) -> str:
    """Say what judges, in words."""
    if chosen.engine == "simulated":
        return "simulated; it asks no model, and every verdict says so"
    return f"{chosen.engine}, {describe_model(chosen)}"


def demo(
    data_dir: DataDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all verdicts.", callback=finite)] = 1800.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One comparison object a line, then a summary object.")
    ] = False,
) -> None:
    """Start everything, judge the example pairs, print the verdicts, end everything.

    Example: nightcourt demo --json
    """
    chosen = settings.load(data_dir=data_dir)
    logs.configure(process="demo", level="warning", style=chosen.log_format)
    pairs = read_pairs(example_file())
    began = time.monotonic()
    try:
        with ExitStack() as ends:
            info = running_stack(chosen.data_dir)
            if info is None:
                check_model(chosen)
                progress.print("Starting nightcourt")
                info = ends.enter_context(Stack(chosen, on_event=say)).info
            else:
                progress.print(f"Using the stack that runs at {info.api_url}")
            ready = time.monotonic()
            client = ends.enter_context(Client(info.api_url, api_key=info.key))
            progress.print(
                f"Filing {len(pairs)} pairs of examples/first-docket.jsonl, each to be judged in both orders"
            )
            filed = list(file_each(client, pairs))
            decided = []
            for each in watch(client, pairs, filed, seconds=timeout):
                show(each, as_json=as_json)
                decided.append(each)
            judged = time.monotonic()
    except StartCancelledError:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except KeyboardInterrupt:
        progress.print("Ended before all was judged; what was filed is judged when the stack runs again.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    progress.print(
        f"[dim]Ready after {ready - began:.1f} s, judged in {judged - ready:.1f} s. Everything has ended.[/]"
    )
    conclude(decided, as_json=as_json)
