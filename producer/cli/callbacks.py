"""`nightcourt callbacks`: who is called back, what became of each callback, and once more."""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from producer.cli.options import DataDir, Server, Yes, again, ask, finite, id_like, span
from producer.cli.output import Exit, console, local_time, print_json, progress
from producer.cli.server import connected
from schemas.callback import Callback, CallbackState, Endpoint, EventType, Secret

app = typer.Typer(
    help="See who is called back and how that went, and send again.",
    no_args_is_help=True,
)


EndpointId = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, cep_ and 32 digits.", callback=id_like("cep_"))
]
AsJson = Annotated[bool, typer.Option("--json", help="Objects, one a line, for a program.")]

_LOOK_SECONDS = 0.2
_ENDED = (CallbackState.DELIVERED, CallbackState.DEAD)


def _moment(text: str) -> datetime:
    """Understand a span before now, or a moment; one without a zone is local time."""
    try:
        if re.fullmatch(r"\d+[smhd]", text):
            return datetime.now(UTC) - timedelta(seconds=span(text, "--since"))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "takes a span before now or a moment: 12h, 2026-11-24T22:00", param_hint="--since"
        ) from None


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where callbacks shall go.")],
    event: Annotated[
        list[EventType] | None, typer.Option(help="A type of event; may be given again. All when none.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="A note for yourself.")] = None,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Register a receiver, and print its secret, which is shown this once.

    Example: nightcourt callbacks add https://example.com/hook --event batch.completed
    """
    with connected(server, data_dir) as client:
        made = client.add_endpoint(url, events=event or [], description=description)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    console.print(f"{made.id}  {made.url}", soft_wrap=True, markup=False)
    _show_secret(made.secret)


@app.command()
def endpoints(server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the receivers that are registered, and those named by requests that fail or are held; how each is doing.

    Example: nightcourt callbacks endpoints
    """
    with connected(server, data_dir) as client:
        found = client.endpoints().data
    for each in found:
        _show_endpoint(each, as_json=as_json)
    if not found and not as_json:
        progress.print("No receiver is registered, and none that requests named fails or is held.", soft_wrap=True)


@app.command()
def enable(endpoint: EndpointId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Send to a receiver again: after it was disabled, or at once where it is held since it failed or asked for time.

    It may be registered, or named by requests: `callbacks show` tells its id. What died meanwhile is replayed by
    `callbacks replay --since`.

    Example: nightcourt callbacks enable cep_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show_endpoint(client.enable_endpoint(endpoint), as_json=as_json)


@app.command()
def disable(endpoint: EndpointId, server: Server = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Send nothing to a receiver until it is enabled. Its events are kept.

    Example: nightcourt callbacks disable cep_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show_endpoint(client.disable_endpoint(endpoint), as_json=as_json)


@app.command()
def remove(
    endpoint: EndpointId,
    yes: Yes = False,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Remove a receiver for good, with all of its callbacks: those on their way, and the log of the others.

    Example: nightcourt callbacks remove cep_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    ask(f"Remove {endpoint} with all of its callbacks for good?", yes=yes)
    with connected(server, data_dir) as client:
        client.remove_endpoint(endpoint)
    if as_json:
        print_json({"id": endpoint, "deleted": True})
    else:
        console.print(f"{endpoint}  removed", soft_wrap=True, markup=False)


@app.command("list")
def list_(
    status: Annotated[CallbackState | None, typer.Option(help="Only those that stand so.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only those to this endpoint.", callback=id_like("cep_"))] = None,
    of: Annotated[str | None, typer.Option(help="Only those about this comparison or batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(help="Begin after this callback's id.")] = None,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List callbacks, newest first. Those that fail or are held are among --status waiting.

    Example: nightcourt callbacks list --status dead
    """
    with connected(server, data_dir) as client:
        page = client.callbacks(limit=limit, after=after, status=status, endpoint_id=endpoint, object_id=of)
    for each in page.data:
        _show(each, as_json=as_json)
    if as_json:
        return
    if page.has_more:
        progress.print(f"There are more: --after {page.last_id}", soft_wrap=True)
    if not page.data:
        progress.print("There is no such callback.")


@app.command()
def show(
    callback: Annotated[
        str, typer.Argument(metavar="ID", help="The callback's id, cbk_ and 32 digits.", callback=id_like("cbk_"))
    ],
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show a callback with every attempt.

    Example: nightcourt callbacks show cbk_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    with connected(server, data_dir) as client:
        _show(client.callback(callback), as_json=as_json)


@app.command()
def replay(
    callback: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One callback.", callback=id_like("cbk_"))
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Or everything dead of events since then: 12h, 2026-11-24T22:00.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="With --since: to this endpoint alone.", callback=id_like("cep_"))
    ] = None,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send again, under the ids that receivers know: one callback, or all that failed for good since a moment.

    Example: nightcourt callbacks replay --since 12h
    """
    if (callback is None) == (since is None):
        raise typer.BadParameter("give a callback's id, or --since")
    with connected(server, data_dir) as client:
        if callback is not None:
            sent = client.replay(callback)
            _show(sent, as_json=as_json)
            if sent.held_until is not None:
                until = local_time(sent.held_until)
                progress.print(
                    f"It is not sent before {until}: nothing is tried at its receiver, which failed or asked for time. "
                    f"To try now: nightcourt callbacks enable {sent.endpoint_id}{again(server, data_dir)}",
                    soft_wrap=True,
                    markup=False,
                )
            return
        replayed = client.replay_dead(_moment(since or ""), endpoint_id=endpoint)
    if as_json:
        print_json(replayed.model_dump(mode="json"))
    else:
        console.print(f"{replayed.replayed} callbacks go out again.")
    if replayed.held:
        progress.print(
            f"{replayed.held} of them are held: `nightcourt callbacks endpoints{again(server, data_dir)}` tells until "
            "when; `nightcourt callbacks enable` tries now.",
            soft_wrap=True,
            markup=False,
        )


@app.command("test")
def send_test(
    endpoint: EndpointId,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the first attempt.", callback=finite)] = 30.0,
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a receiver a test event, and see whether it arrives. Ends with 1 if it does not.

    Example: nightcourt callbacks test cep_0197f3c2a5d47b1c8e6f0a1b2c3d4e5f
    """
    give_up_at = time.monotonic() + timeout
    with connected(server, data_dir) as client:
        sent = client.test_endpoint(endpoint)
        while sent.status not in _ENDED and not sent.log and time.monotonic() < give_up_at:
            if sent.held_until and (sent.held_until - sent.created_at).total_seconds() > timeout:
                break  # nothing will be tried meanwhile
            time.sleep(_LOOK_SECONDS)
            sent = client.callback(sent.id)
    _show(sent, as_json=as_json)
    if sent.status is not CallbackState.DELIVERED:
        raise typer.Exit(Exit.FAILED)


@app.command("rotate-secret")
def rotate_secret(
    endpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[ENDPOINT]", help="An endpoint; without one, your default secret.", callback=id_like("cep_")
        ),
    ] = None,
    grace: Annotated[str, typer.Option(help="How long the earlier secret signs too; 0s ends it at once.")] = "24h",
    server: Server = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a secret, the first or the next, and print it, which is shown this once.

    The default secret signs what goes to the callback_url of comparisons and batches.

    Example: nightcourt callbacks rotate-secret --grace 24h
    """
    with connected(server, data_dir) as client:
        made: Secret = client.rotate_secret(endpoint, grace_seconds=span(grace, "--grace"))
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    _show_secret(made.secret)
    if made.previous_valid_until is not None:
        progress.print(f"The earlier secret signs too until {local_time(made.previous_valid_until)}.")


def _show_secret(secret: str) -> None:
    console.print(secret, soft_wrap=True, markup=False)
    progress.print("Give it to your receiver now: it is not shown again.")


def _show_endpoint(endpoint: Endpoint, *, as_json: bool) -> None:
    if as_json:
        print_json(endpoint.model_dump(mode="json"))
        return
    wants = ", ".join(endpoint.events) or "everything" if endpoint.registered else "named by requests"
    how = endpoint.status if endpoint.disabled_reason is None else f"disabled ({endpoint.disabled_reason})"
    if endpoint.status == "enabled" and endpoint.failures:
        how += f", failed {endpoint.failures} times in a row"
    if endpoint.status == "enabled" and endpoint.held_until and endpoint.held_until > datetime.now(UTC):
        how += f", held until {local_time(endpoint.held_until)}"
    console.print(f"{endpoint.id}  {how}  {endpoint.url}  {wants}", soft_wrap=True, markup=False)


def _show(callback: Callback, *, as_json: bool) -> None:
    if as_json:
        print_json(callback.model_dump(mode="json"))
        return
    why = (
        f" ({callback.last_reason})" if callback.last_reason and callback.status is not CallbackState.DELIVERED else ""
    )
    console.print(
        f"{callback.id}  {callback.status}{why}  {callback.type}  {callback.data.id}  {callback.url}"
        f"{_when(callback) if callback.log is None else ''}",
        soft_wrap=True,
        markup=False,
    )
    if callback.log is not None:
        _show_attempts(callback)


def _when(callback: Callback) -> str:
    """Tell of one in a list when it is tried next; what is new and not held is tried at once."""
    if callback.held_until is not None:
        return f"  held until {local_time(callback.held_until)} by {callback.endpoint_id}"
    if callback.next_attempt_at is not None and callback.attempts:
        return f"  next attempt at {local_time(callback.next_attempt_at)}"
    return ""


def _show_attempts(callback: Callback) -> None:
    before = 0
    for each in callback.log or []:
        if each.number <= before:
            console.print("  sent again:")
        before = each.number
        answer = f"{each.reason}" if each.status is None else f"{each.reason} {each.status}"
        console.print(f"  {each.number:2}  {local_time(each.at)}  {each.seconds:6.2f} s  {answer}", soft_wrap=True)
    if callback.next_attempt_at is None:
        return
    stands = "to be sent again: " if before and not callback.attempts else ""
    when = local_time(callback.next_attempt_at)
    if callback.held_until is None:
        console.print(f"  {stands}next attempt at {when}", soft_wrap=True)
        return
    console.print(
        f"  {stands if before else 'nothing was tried: '}held until {when}, "
        "since its receiver failed or asked for time; "
        f"`nightcourt callbacks enable {callback.endpoint_id}` tries now",
        soft_wrap=True,
        markup=False,
    )
