"""What was typed and cannot be is told by the name that it has on the command line, before anything is asked."""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from support.program import ROOT
from typer.testing import CliRunner

from producer.cli.app import make_app

EXAMPLES = str(ROOT / "examples" / "first-docket.jsonl")


def commands(app: typer.Typer) -> Iterator[tuple[str, Callable[..., None]]]:
    """Every command as it is typed, with the function that it runs; those of groups included."""
    for group in app.registered_groups:
        for name, function in commands(group.typer_instance):
            yield f"{group.name} {name}", function
    for command in app.registered_commands:
        yield command.name or command.callback.__name__, command.callback


COMMANDS = dict(commands(make_app()))
NUMBERS = {
    f"{typed} {name}": get_args(hint)[1]
    for typed, function in COMMANDS.items()
    for name, hint in get_type_hints(function, include_extras=True).items()
    if get_origin(hint) is Annotated and get_args(hint)[0] in (float, float | None)
}
"""The options that take a number with a point."""


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_shows_an_example(typed: str):
    """--help explains each command, those of groups included, and shows it in use."""
    words = typed.split()
    ended = CliRunner().invoke(make_app(words[:1]), [*words, "--help"])
    assert ended.exit_code == 0
    assert re.search(rf"Example: .*nightcourt {typed}", " ".join(ended.output.split()))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_option_takes_a_number_without_end(name: str, value: str):
    """Whatever counts with it would end in a trace, or in nonsense."""
    with pytest.raises(typer.BadParameter, match=f"{value} is none to count with"):
        NUMBERS[name].callback(float(value))


def test_the_options_that_take_numbers_are_found():
    """Those of groups too."""
    assert {"plan rate", "submit tie_margin", "eval curate min_confidence"} < set(NUMBERS)


@pytest.mark.parametrize("typed", ["batch run", "callbacks list", "eval gold", "keys list", "engine bench"])
def test_help_in_short(typed: str):
    """-h is --help, for groups and for what is in them."""
    group, command = typed.split()
    for asked in ([group, "-h"], [group, command, "-h"]):
        ended = CliRunner().invoke(make_app([group]), asked)
        assert ended.exit_code == 0
        assert "Usage:" in ended.output


@pytest.mark.parametrize(
    ("typed", "names", "says"),
    [
        (("submit", EXAMPLES, "--server", "127.0.0.1"), "--server", "takes the URL of a service"),
        (("submit", EXAMPLES, "--server", "http://[::1"), "--server", "takes the URL of a service"),
        (("submit", EXAMPLES, "--server", "http://localhost:83OO"), "--server", "takes the URL of a service"),
        (("batch", "status", "nope"), "'ID'", "looks like batch_ and 32 hexadecimal digits"),
        (("batch", "status", "nope", "--server", "http://127.0.0.1:9"), "'ID'", "looks like batch_"),
        (
            ("callbacks", "add", "https://receiver.example", "--event", "foo"),
            "'--event'",
            "is not one of 'comparison.succeeded'",
        ),
        (("callbacks", "list", "--status", "foo"), "'--status'", "is not one of 'waiting', 'released'"),
        (("callbacks", "list", "--endpoint", "foo"), "'--endpoint'", "looks like cep_"),
        (("callbacks", "show", "nope"), "'ID'", "looks like cbk_"),
        (("callbacks", "replay", "nope"), "'[ID]'", "looks like cbk_"),
        (("callbacks", "replay", "--since", "999999d"), "--since", "takes a span before now or a moment"),
        (("callbacks", "test", "nope"), "'ENDPOINT'", "looks like cep_"),
        (("up", "--port", "70000"), "'--port'", "less than or equal to 65535"),
        (("api", "--port", "70000"), "'--port'", "less than or equal to 65535"),
        (("keys", "revoke", "nope"), "'KEY'", "looks like nck_"),
        (("keys", "rotate", f"nck_{'x' * 32}"), "'KEY'", "looks like nck_"),
    ],
    ids=lambda each: f"{each[0]} {each[-1]}" if isinstance(each, tuple) else "",
)
def test_what_cannot_be_is_named_as_it_was_typed(typed: tuple[str, ...], names: str, says: str):
    """It ends with 2, as every command line does that cannot be understood."""
    ended = CliRunner().invoke(make_app([typed[0]]), typed, env={"COLUMNS": "300"})
    assert ended.exit_code == 2
    assert names in ended.output
    assert says in ended.output
