"""What was typed and cannot be is told by the name that it has on the command line, before anything is asked."""

import pytest
from support.program import ROOT
from typer.testing import CliRunner

from producer.cli.app import make_app

EXAMPLES = str(ROOT / "examples" / "first-docket.jsonl")


@pytest.mark.parametrize(
    ("typed", "names", "says"),
    [
        (("submit", EXAMPLES, "--server", "127.0.0.1"), "--server", "takes the URL of a service"),
        (("submit", EXAMPLES, "--server", "http://[::1"), "--server", "takes the URL of a service"),
        (("batch", "status", "nope"), "'ID'", "looks like batch_ and 32 hexadecimal digits"),
        (("batch", "status", "nope", "--server", "http://127.0.0.1:9"), "'ID'", "looks like batch_"),
        (("callbacks", "add", "https://receiver.example", "--event", "foo"), "'--event'", "takes one of comparison."),
        (("callbacks", "list", "--status", "foo"), "'--status'", "takes one of waiting, released"),
        (("callbacks", "list", "--endpoint", "foo"), "'--endpoint'", "looks like cep_"),
        (("callbacks", "show", "nope"), "'ID'", "looks like cbk_"),
        (("callbacks", "replay", "nope"), "'[ID]'", "looks like cbk_"),
        (("callbacks", "test", "nope"), "'ENDPOINT'", "looks like cep_"),
    ],
    ids=lambda each: f"{each[0]} {each[-1]}" if isinstance(each, tuple) else "",
)
def test_what_cannot_be_is_named_as_it_was_typed(typed: tuple[str, ...], names: str, says: str):
    """It ends with 2, as every command line does that cannot be understood."""
    ended = CliRunner().invoke(make_app([typed[0]]), typed, env={"COLUMNS": "300"})
    assert ended.exit_code == 2
    assert names in ended.output
    assert says in ended.output
