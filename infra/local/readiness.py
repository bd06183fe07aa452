"""Asks the embedded stack's API whether the stack is ready."""

import http.client
import json
from contextlib import suppress

from infra.local.ports import listens

_ASK_SECONDS = 2.0


def obstacle(pid: int | None, host: str, port: int) -> str | None:
    """What keeps the API from being ready; None when it is."""
    # Two stacks that start together may choose the same port, and one would take the other's API for its own.
    if pid is None or not listens(pid, port):
        return "the API does not listen"
    # Not urllib: it would ask the proxy of the user's environment.
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"the API does not answer: {error}"
    finally:
        connection.close()
    if answer.status != http.client.OK:
        return f"/readyz says {answer.status}: {text}"
    # The API takes work as soon as the database is there, and says so with a 200. The stack is ready when a
    # worker is there as well.
    return None if _says_ready(text) else f"/readyz says {text}"


def _says_ready(text: str) -> bool:
    with suppress(ValueError):
        said = json.loads(text)
        return isinstance(said, dict) and said.get("status") == "ready"
    return False
