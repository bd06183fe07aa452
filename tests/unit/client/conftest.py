"""What the client's tests ask: a service that answers by a script, with both clients in turn."""

from collections.abc import Iterator

import pytest
from support.scripted import Caller, ScriptedService


@pytest.fixture
def court() -> Iterator[ScriptedService]:
    """The scripted service."""
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """Both clients in turn: they keep the same promises."""
    return Caller(request.param)
