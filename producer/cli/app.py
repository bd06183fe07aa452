"""The commands, put together."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from producer.cli import batch, callbacks, dashboard, doctor, engine, evals, keys, plan, processes, purge, stack, submit
from producer.cli.output import Exit, fail, progress
from producer.client import ClientError, ServerProblem, ServerUnreachable
from schemas.problems import NO_SERVER, UNAVAILABLE, Problem, ProblemKind

app = typer.Typer(
    name="nightcourt",
    help="File pairs of answers; a judge model says which is better, and how sure it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel="Everything here")(stack.up)
app.command(rich_help_panel="Everything here")(stack.demo)
app.command(rich_help_panel="Everything here")(dashboard.dashboard)
app.command(rich_help_panel="Use a service")(submit.submit)
app.add_typer(batch.app, name="batch", rich_help_panel="Use a service")
app.add_typer(callbacks.app, name="callbacks", rich_help_panel="Use a service")
app.command(rich_help_panel="Use a service")(plan.plan)
app.add_typer(evals.app, name="eval", rich_help_panel="Use a service")
app.command(rich_help_panel="Use a service")(doctor.doctor)
app.add_typer(keys.app, name="keys", rich_help_panel="Run a service")
app.command(rich_help_panel="Run a service")(purge.purge)
app.add_typer(engine.app, name="engine", rich_help_panel="The judge model")
app.command(rich_help_panel="Processes")(processes.api)
app.command(rich_help_panel="Processes")(processes.dispatcher)
app.command(rich_help_panel="Processes")(processes.worker)
app.command("callbacks-worker", rich_help_panel="Processes")(processes.callbacks_worker)
app.command(rich_help_panel="Processes")(processes.migrate)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"nightcourt {version('nightcourt')}\n")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """File pairs of answers; a judge model says which is better, and how sure it is."""


def main() -> None:
    """Run a command. Whatever a user can do about a failure is said in a sentence, without a trace."""
    as_json = "--json" in sys.argv
    try:
        app()
    except Problem as problem:
        fail(problem, as_json=as_json)
    except ServerUnreachable as error:
        fail(Problem(NO_SERVER, str(error)), as_json=as_json)
    except ServerProblem as error:
        kind = ProblemKind(error.code, UNAVAILABLE.status, error.document.title)
        fail(Problem(kind, error.document.detail, errors=error.document.errors), as_json=as_json)
    except ClientError as error:
        fail(Problem(NO_SERVER, str(error)), as_json=as_json)
    except KeyboardInterrupt:
        progress.print("Interrupted.")
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say to them.
        sys.stderr.close()
        sys.exit(Exit.FAILED)
