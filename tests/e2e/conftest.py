"""Services that several end-to-end tests share."""

from collections.abc import Iterator

import pytest
from support.clerk import Clerk
from support.service import Service, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the simulated engine, which answers at once."""
    with running_service(tmp_path_factory.mktemp("service") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def service_at_rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose engine takes hours, so that what is filed stays undecided."""
    with running_service(tmp_path_factory.mktemp("rest") / "data", simulated_tokens_per_second=0.01) as running:
        yield running


@pytest.fixture
def clerk(service: Service) -> Clerk:
    """A clerk at a service whose engine answers at once."""
    return Clerk(service)
