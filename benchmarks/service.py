"""What several measurements do with a service that they started: make a key for it, and wait for what it does."""

import time
from collections.abc import Callable

from infra.database import connect
from producer import keys
from schemas.keys import Scope


def make_key(database_url: str, *, tenant: str) -> str:
    """Make a key that may do everything in a tenant."""
    database = connect(database_url, application="benchmark", pool_size=1)
    try:
        with database.begin() as connection:
            return keys.create(connection, tenant=tenant, scopes=[Scope.ADMIN]).key
    finally:
        database.dispose()


def wait_until(done: Callable[[], bool], *, within: float, what: str) -> None:
    """Wait until something is done, looking ten times a second.

    Raises:
        RuntimeError: it is still not done after so many seconds.
    """
    deadline = time.monotonic() + within
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {within:g} s: {what}")
        time.sleep(0.1)
