"""`nightcourt purge`: delete by age, by batch or by tenant, straight in the database."""

import re
from typing import Annotated

import typer
from sqlalchemy import Engine as Database
from sqlalchemy import text

from producer import retention
from producer.cli.host import DataDir, records
from producer.cli.output import console
from schemas import ids
from schemas.problems import BATCH_RUNNING, NOT_FOUND, UNAVAILABLE, Problem

_UNITS = {"h": 3600, "d": 86400}
_EXISTS = text("SELECT EXISTS (SELECT FROM batches WHERE id = :id)")


def purge(
    older_than: Annotated[str | None, typer.Option(help="What ended longer ago than this: 12h, 30d.")] = None,
    batch: Annotated[str | None, typer.Option(help="One batch that has ended, with its outcomes.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Everything of a tenant, keys and running work included.")] = None,
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete comparisons, verdicts and files for good, in small steps beside running work.

    Example: nightcourt purge --older-than 30d
    """
    if sum(each is not None for each in (older_than, batch, tenant)) != 1:
        raise typer.BadParameter("give one of --older-than, --batch and --tenant")
    what = (
        f"all that ended more than {older_than} ago"
        if older_than
        else f"batch {batch}"
        if batch
        else f"tenant {tenant}"
    )
    if not yes:
        typer.confirm(f"Delete {what} for good?", abort=True)
    with records(data_dir, application="purge") as database:
        if older_than is not None:
            gone = retention.delete_old(database, older_than=_seconds(older_than))
        elif batch is not None:
            gone = _delete_batch(database, batch)
        else:
            gone = _delete_tenant(database, tenant or "")
    console.print(f"{gone} rows deleted.")


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d{1,5})([hd])", age)
    if match is None:
        raise typer.BadParameter("takes hours or days: 12h, 30d", param_hint="--older-than")
    return int(match[1]) * _UNITS[match[2]]


def _delete_tenant(database: Database, tenant: str) -> int:
    try:
        return retention.delete_tenant(database, tenant)
    except TimeoutError as error:
        raise Problem(UNAVAILABLE, f"{str(error).capitalize()}. The tenant's keys are gone already.") from None


def _delete_batch(database: Database, batch: str) -> int:
    batch_id = ids.parse_prefixed(batch, "batch_")
    with database.connect() as connection:
        found = connection.execute(_EXISTS, {"id": batch_id}).scalar()
    if batch_id is None or not found:
        raise Problem(NOT_FOUND, f"There is no batch {batch}.")
    gone = retention.delete_batch(database, batch_id)
    if gone == 0:
        raise Problem(BATCH_RUNNING, f"{batch} has not ended; cancel it, and let it end.")
    return gone
