"""The command line: `nightcourt`, composition root of what a person starts by hand."""

import os
import sys

_INTERRUPTED = 130  # producer.cli.output.Exit has it too, and is slow to load


def main() -> None:
    """Run a command."""
    try:
        # Imported here: it takes a second or more, in which Ctrl-C is to end a command as it does later.
        from producer.cli.app import main as run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:  # one that comes while a command runs is that command's own
        sys.stderr.write("Interrupted.\n")
        sys.stderr.flush()
        # Not sys.exit: where the signal came in an `exec`, Python ends by it, even if it was caught.
        os._exit(_INTERRUPTED)


__all__ = ["main"]
