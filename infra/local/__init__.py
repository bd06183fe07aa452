"""The embedded stack: Postgres, Redis and a model, all real, all from wheels, children of one supervisor."""


class LocalStackError(Exception):
    """The embedded stack cannot do what was asked; the message says why and what to do about it."""


class StartCancelledError(LocalStackError):
    """Starting was given up because the stack was asked to end."""
