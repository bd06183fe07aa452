"""`nightcourt purge`: delete by age, by batch or by tenant, straight in the database."""

import re
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from sqlalchemy import Engine as Database
from sqlalchemy import text

from infra import settings
from infra.local.folder import running_stack
from producer import retention
from producer.cli.database import open_database
from producer.cli.options import DataDir, Yes, ask, id_of
from producer.cli.output import console, progress
from producer.keys import FIRST_TENANT
from schemas import ids
from schemas.problems import BATCH_RUNNING, NOT_FOUND, UNAVAILABLE, Problem

_UNITS = {"h": 3600, "d": 86400}
_EXISTS = text("SELECT EXISTS (SELECT FROM batches WHERE id = :id)")


def purge(
    older_than: Annotated[str | None, typer.Option(help="What ended longer ago than this: 12h, 30d.")] = None,
    batch: Annotated[str | None, typer.Option(help="One batch that has ended, with its outcomes.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Everything of a tenant, keys and running work included; no key can be made for the name any more."
        ),
    ] = None,
    data_dir: DataDir = None,
    yes: Yes = False,
) -> None:
    """Delete comparisons, verdicts and files for good, in small steps beside running work.

    Example: nightcourt purge --older-than 30d
    """
    if sum(each is not None for each in (older_than, batch, tenant)) != 1:
        raise typer.BadParameter("give one of --older-than, --batch and --tenant")
    # What was typed is looked at before anybody is asked whether they mean it.
    seconds = None if older_than is None else _seconds(older_than)
    batch_id = None if batch is None else id_of(batch, "batch_", "--batch")
    # A tenant's last rows are looked for in tables that no index of tenants is on: that takes as long as it takes.
    with open_database(data_dir, application="purge", statement_seconds=0) as database:
        if seconds is not None:
            ask(f"Delete all that ended more than {older_than} ago for good?", yes=yes)
            gone = retention.delete_old(database, older_than=seconds)
        elif batch_id is not None:
            _require_batch(database, batch_id)
            ask(f"Delete batch {batch} for good?", yes=yes)
            gone = _delete_batch(database, batch_id)
        else:
            name = tenant or ""
            _require_other_than_ours(data_dir, name)
            if not retention.knows_tenant(database, name):
                raise Problem(NOT_FOUND, f"Nothing is stored of a tenant {name}; nothing was deleted.")
            ask(f"Delete tenant {name} for good?", yes=yes)
            gone = _delete_tenant(database, name)
            progress.print(f"No key can be made for the tenant {name} any more.", markup=False, soft_wrap=True)
    console.print(f"{gone} rows deleted.")


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d{1,5})([hd])", age)
    if match is None:
        raise typer.BadParameter("takes hours or days: 12h, 30d", param_hint="--older-than")
    return int(match[1]) * _UNITS[match[2]]


def _require_other_than_ours(data_dir: Path | None, tenant: str) -> None:
    """Keep the tenant of an embedded stack's own key: without it nobody there has a key that commands find."""
    if tenant == FIRST_TENANT and running_stack(settings.load(data_dir=data_dir).data_dir) is not None:
        raise typer.BadParameter(
            f"the embedded stack's own key is of the tenant {tenant}, and no other can be made for a name that was "
            "purged. --older-than 0h deletes what has ended; to begin anew, end the stack and delete its folder",
            param_hint="--tenant",
        )


def _delete_tenant(database: Database, tenant: str) -> int:
    try:
        return retention.delete_tenant(database, tenant)
    except TimeoutError as error:
        raise Problem(UNAVAILABLE, f"{str(error).capitalize()}. The tenant's keys are gone already.") from None


def _require_batch(database: Database, batch_id: UUID) -> None:
    with database.connect() as connection:
        if not connection.execute(_EXISTS, {"id": batch_id}).scalar():
            raise Problem(NOT_FOUND, f"There is no batch {ids.batch_id(batch_id)}.")


def _delete_batch(database: Database, batch_id: UUID) -> int:
    gone = retention.delete_batch(database, batch_id)
    if gone == 0:
        raise Problem(BATCH_RUNNING, f"{ids.batch_id(batch_id)} has not ended; cancel it, and let it end.")
    return gone
