"""`nightcourt dashboard`: an address that signs a browser in, once."""

from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from infra import settings
from infra.database import connect, reason_or_kind
from infra.environment import forget_libpq
from infra.local.folder import StackInfo, running_stack
from producer import sessions
from producer.cli.output import console
from schemas.keys import parse_key
from schemas.problems import LOCAL_STACK, UNAVAILABLE, Problem


def invitation(info: StackInfo) -> str:
    """Make an address of a running stack's dashboard that begins a session once, within ten minutes.

    It stands on a terminal and in a browser's history, and so is worth nothing once it was used.
    """
    home = f"{info.api_url}/dashboard/"
    spelled = parse_key(info.key or "")
    if spelled is None:
        return home
    forget_libpq()
    database = connect(info.database_url, application="cli", pool_size=1)
    try:
        with database.begin() as connection:
            return f"{home}enter?invitation={sessions.invite(connection, spelled.id)}"
    finally:
        database.dispose()


def dashboard(
    data_dir: Annotated[Path | None, typer.Option(help="Where the stack keeps everything.")] = None,
) -> None:
    """Print an address of the stack that runs here which signs a browser in, once, within ten minutes.

    Elsewhere, open /dashboard/ of the API and sign in with a key.

    Example: nightcourt dashboard
    """
    chosen = settings.load(data_dir=data_dir)
    info = running_stack(chosen.data_dir)
    if info is None:
        raise Problem(
            LOCAL_STACK,
            "No stack runs here. Start one with `nightcourt up`, name the folder of one with --data-dir, or open "
            "/dashboard/ of your API.",
        )
    try:
        console.print(invitation(info), soft_wrap=True)
    except SQLAlchemyError as error:
        raise Problem(
            UNAVAILABLE, f"The stack's Postgres cannot be used just now ({reason_or_kind(error)}): try again."
        ) from None
