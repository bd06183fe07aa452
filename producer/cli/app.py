"""The commands, put together."""

import errno
import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Annotated

import typer

from infra.local import LocalStackError
from producer.cli.output import Exit, fail
from producer.client import ClientError, ServerProblem
from schemas.problems import BAD_OUTPUT_FILE, LOCAL_STACK, NO_SERVER, Problem

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
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})


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


def _give_up_output() -> None:
    """Let go of what could not be written: it is in a buffer still, and would be tried once more at the very end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run a command. Whatever a user can do about a failure is said in a sentence, without a trace."""
    as_json = "--json" in sys.argv
    # A command alone starts in half the time of all of them; without a known one it is a question about all.
    named = sys.argv[1:2]
    try:
        try:
            make_app(named if COMMANDS.keys() >= set(named) else COMMANDS)()
        finally:
            if sys.stdout is not None:  # it is None where it was closed before we began
                sys.stdout.flush()
    except LocalStackError as error:
        fail(Problem(LOCAL_STACK, str(error)).document(), as_json=as_json)
    except Problem as problem:
        fail(problem.document(), as_json=as_json)
    except ServerProblem as error:
        fail(error.document, as_json=as_json)
    except ClientError as error:
        fail(Problem(NO_SERVER, str(error)).document(), as_json=as_json)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say to them.
        _give_up_output()
        sys.exit(Exit.FAILED)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _give_up_output()
        where = error.filename or "Standard output or a temporary file"
        fail(Problem(BAD_OUTPUT_FILE, f"{where}: {error.strerror}.").document(), as_json=as_json)
