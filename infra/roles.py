"""What the processes log in as: to Postgres each in a role of its own, to Redis all as one user.

Migrations make the roles, with the grants that each needs; who runs Redis makes the user.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from sqlalchemy import Connection
from sqlalchemy.engine import make_url

Process = Literal["api", "dispatcher", "worker", "callbacks"]
PROCESSES: tuple[Process, ...] = get_args(Process)

KEY_PREFIX = "nightcourt:"
"""What every key in Redis begins with."""
PROBE_KEY = f"{KEY_PREFIX}probe"
"""Written to by who wants to know whether Redis takes writes: a replica, or one that is full, answers a PING."""
REDIS_USER = "nightcourt"
REDIS_RULES = (
    *(f"~{KEY_PREFIX}*", "resetchannels", "+@all", "-@admin", "-@dangerous"),
    *("+client|setname", "+client|setinfo"),
)
"""Its own keys, nobody's channels, and no command that empties, lists, configures or ends the server."""


def role_of(process: str) -> str:
    """Name the role of a process."""
    return f"nightcourt_{process}"


def url_as(url: str, process: str, password: str) -> str:
    """Give the URL by which a process logs in to the database that the owner reaches by `url`."""
    return make_url(url).set(username=role_of(process), password=password).render_as_string(hide_password=False)


def let_in(connection: Connection, passwords: Mapping[str, str]) -> None:
    """Let processes log in by these passwords from now on, and by no earlier ones.

    Args:
        connection: in a transaction of the owner's, on migrated tables.
        passwords: by process.

    Raises:
        sqlalchemy.exc.ProgrammingError: the owner may not change the roles.
    """
    driver: Any = connection.connection.driver_connection
    for process, password in passwords.items():
        role = role_of(process)
        # Hashed here, since a statement may end up in the server's log.
        hashed = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.exec_driver_sql(f"ALTER ROLE {role} LOGIN PASSWORD '{hashed}'")
