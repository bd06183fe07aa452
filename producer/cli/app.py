"""The commands, put together."""

import sys
from collections.abc import Iterable
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Annotated

import typer

from producer.cli.output import Exit, fail, progress
from producer.client import ClientError, ServerProblem, ServerUnreachable
from schemas.problems import NO_SERVER, UNAVAILABLE, Problem, ProblemKind

_ALL, _USE, _RUN, _PROCESSES = "Everything here", "Use a service", "Run a service", "Processes"
COMMANDS = {
    "up": ("producer.cli.stack:up", _ALL),
    "demo": ("producer.cli.stack:demo", _ALL),
    "dashboard": ("producer.cli.dashboard:dashboard", _ALL),
    "submit": ("producer.cli.submit:submit", _USE),
    "batch": ("producer.cli.batch:app", _USE),
    "callbacks": ("producer.cli.callbacks:app", _USE),
    "plan": ("producer.cli.plan:plan", _USE),
    "eval": ("producer.cli.evals:app", _USE),
    "doctor": ("producer.cli.doctor:doctor", _USE),
    "keys": ("producer.cli.keys:app", _RUN),
    "purge": ("producer.cli.purge:purge", _RUN),
    "engine": ("producer.cli.engine:app", "The judge model"),
    "api": ("producer.cli.processes:api", _PROCESSES),
    "dispatcher": ("producer.cli.processes:dispatcher", _PROCESSES),
    "worker": ("producer.cli.processes:worker", _PROCESSES),
    "callbacks-worker": ("producer.cli.processes:callbacks_worker", _PROCESSES),
    "migrate": ("producer.cli.migrate:migrate", _PROCESSES),
}
"""Where each command is, or the application of its own that it is, and the panel of the help that lists it."""


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"nightcourt {version('nightcourt')}\n")
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """File pairs of answers; a judge model says which is better, and how sure it is."""


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """Put commands together. Only what they need is loaded."""
    app = typer.Typer(
        name="nightcourt",
        help="File pairs of answers; a judge model says which is better, and how sure it is.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=root,
    )
    for name in names:
        place, panel = COMMANDS[name]
        command = resolve_name(place)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)
    return app


def main() -> None:
    """Run a command. Whatever a user can do about a failure is said in a sentence, without a trace."""
    as_json = "--json" in sys.argv
    # A command alone starts in half the time of all of them; without a known one it is a question about all.
    named = sys.argv[1:2]
    try:
        make_app(named if COMMANDS.keys() >= set(named) else COMMANDS)()
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
