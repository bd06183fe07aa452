"""The service that commands ask: where it is, and a client of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import typer

from infra import settings
from infra.local import LocalStackError
from infra.local.folder import running_stack
from infra.settings import Settings
from producer.cli.options import no_stack
from producer.client import Client
from producer.client.plans import without_version


class Address(NamedTuple):
    """Where a service is, and the key that it takes."""

    url: str
    key: str | None


def find_server(chosen: Settings) -> Address:
    """Tell where the service is: where the settings say, else the embedded stack that runs, else the usual place.

    The key is that of the settings; where they have none and it is the embedded stack that is asked, that stack's own.

    Raises:
        Problem: the settings name the folder of an embedded stack, and none runs there.
    """
    if chosen.server is not None and not settings.is_url(chosen.server, {"http", "https"}):
        raise typer.BadParameter(
            f"--server or NIGHTCOURT_SERVER takes the URL of a service, for instance http://{chosen.host}:{chosen.port}"
        )
    server = None if chosen.server is None else without_version(chosen.server)
    key = None if chosen.key is None else chosen.key.get_secret_value()
    try:
        stack = running_stack(chosen.data_dir)
    except LocalStackError:
        if chosen.server is None:
            raise
        stack = None
    if stack is not None and (server or stack.api_url) == stack.api_url:
        return Address(stack.api_url, key or stack.key)
    if chosen.server is None and chosen.data_dir is not None:
        raise no_stack(chosen.data_dir)
    return Address(server or f"http://{chosen.host}:{chosen.port}", key)


@contextmanager
def connected(server: str | None, data_dir: Path | None) -> Iterator[Client]:
    """Lend a client of the service that these options, or else the settings, name."""
    at = find_server(settings.load(server=server, data_dir=data_dir))
    with Client(at.url, api_key=at.key) as client:
        yield client
