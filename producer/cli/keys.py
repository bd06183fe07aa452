"""`nightcourt keys`: who may use the service. For its operator, on a host that reaches the database."""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer

from producer import keys
from producer.cli.database import open_database
from producer.cli.options import DataDir, finite, id_of, span
from producer.cli.output import console, local_time, print_json, progress
from schemas.keys import MOST, MOST_TOKENS, Key, KeyLimits, NewKey, Scope

app = typer.Typer(
    help="Make, list, revoke and rotate keys, on a host that reaches the database.",
    no_args_is_help=True,
)


def _id(text: str) -> UUID:
    return id_of(text[:36], "nck_")  # whoever pastes a whole key means its id


def _checked(text: str) -> str:
    _id(text)
    return text


KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, nck_ and 32 digits.", callback=_checked)]
AsJson = Annotated[bool, typer.Option("--json", help="Objects, one a line, for a program.")]


def _scopes(text: str) -> list[Scope]:
    try:
        return [Scope(each.strip()) for each in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"takes one or more of {', '.join(Scope)}, with commas between", param_hint="--scopes"
        ) from None


@app.command()
def create(
    tenant: Annotated[
        str, typer.Option(help="Whose key it is: tenants see nothing of each other.")
    ] = keys.FIRST_TENANT,
    scopes: Annotated[str, typer.Option(help="submit, read and admin, with commas between.")] = "submit,read",
    name: Annotated[str | None, typer.Option(help="A note, to know it by.")] = None,
    expires: Annotated[str | None, typer.Option(help="How long it lives: 90d; for good unless told.")] = None,
    requests_per_second: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Its own limit of requests.", callback=finite)
    ] = None,
    queued_comparisons: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="How many comparisons may be undecided when it files more.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="How many tokens it may have judged a day.")
    ] = None,
    concurrent_batches: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="How many batches may not have ended when it makes another.")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(min=1, max=MOST, help="The largest body it may send.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, which is done this once.

    Example: nightcourt keys create --tenant search --scopes submit,read --name "nightly evals" --expires 90d
    """
    if not 1 <= len(tenant) <= 64 or not tenant.isprintable():  # noqa: PLR2004
        raise typer.BadParameter("takes 1 to 64 printable characters", param_hint="--tenant")
    limits = KeyLimits(
        requests_per_second=requests_per_second,
        queued_comparisons=queued_comparisons,
        tokens_per_day=tokens_per_day,
        concurrent_batches=concurrent_batches,
        max_body_bytes=max_body_bytes,
    )
    chosen = _scopes(scopes)
    lifetime = None if expires is None else span(expires, "--expires")
    with open_database(data_dir, application="keys") as database, database.begin() as connection:
        made = keys.create(connection, tenant=tenant, scopes=chosen, name=name, expires_seconds=lifetime, limits=limits)
    _show_new(made, as_json=as_json)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first, those that have ended included.

    Example: nightcourt keys list --tenant search
    """
    with open_database(data_dir, application="keys") as database, database.connect() as connection:
        found = keys.listing(connection, tenant=tenant)
    for each in found:
        _show(each, as_json=as_json)
    if not found and not as_json:
        progress.print("There is no such key." if tenant else "There is no key.")


@app.command()
def revoke(key: KeyId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a key. Within five seconds every API process refuses it.

    Example: nightcourt keys revoke nck_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with open_database(data_dir, application="keys") as database, database.begin() as connection:
        ended = keys.revoke(connection, _id(key))
    _show(ended, as_json=as_json)


@app.command()
def rotate(
    key: KeyId,
    overlap: Annotated[str, typer.Option(help="How long the old one lives yet; 0s ends it at once.")] = "24h",
    expires: Annotated[
        str | None, typer.Option(help="How long the new one lives: 90d; as long as the old one was to, unless told.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key's successor and print it, which is done this once; for a time both are good.

    The successor has the same tenant, scopes and limits.

    Example: nightcourt keys rotate nck_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f --overlap 7d
    """
    lifetime = None if expires is None else span(expires, "--expires")
    overlap_seconds = span(overlap, "--overlap")
    with open_database(data_dir, application="keys") as database, database.begin() as connection:
        made = keys.rotate(connection, _id(key), overlap_seconds=overlap_seconds, expires_seconds=lifetime)
    _show_new(made, as_json=as_json)
    if not as_json:
        progress.print(f"{made.replaces} lives until {local_time(made.previous_valid_until)}.")


def _show_new(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    console.print(made.key, soft_wrap=True, markup=False)
    progress.print("Keep it now: it is not shown again. Send it as `Authorization: Bearer`, or set NIGHTCOURT_KEY.")


def _show(key: Key, *, as_json: bool) -> None:
    if as_json:
        print_json(key.model_dump(mode="json"))
        return
    until = "" if key.expires_at is None else f"  until {local_time(key.expires_at)}"
    replaces = "" if key.replaces is None else f"  in place of {key.replaces}"
    own = "".join([f"  {name}={limit:,}" for name, limit in asdict(key.limits).items() if limit is not None])
    console.print(
        f"{key.id}  {key.status}  {key.tenant}  {','.join(key.scopes)}  {key.name or '-'}{until}{replaces}{own}",
        soft_wrap=True,
        markup=False,
    )
