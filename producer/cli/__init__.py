"""The command line: `nightcourt`, composition root of what a person starts by hand."""

from producer.cli.app import main

__all__ = ["main"]
