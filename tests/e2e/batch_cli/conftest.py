"""The service that `nightcourt batch` is used with in these tests."""

from collections.abc import Iterator

import pytest
from support.program import Cli, program_of
from support.service import Service, running_service


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that judges a few dozen pairs a second."""
    with running_service(
        tmp_path_factory.mktemp("batches") / "data", simulated_tokens_per_second=40_000
    ) as running_one:
        yield running_one


@pytest.fixture(scope="package")
def cli(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The program, told by its environment which service to use."""
    return program_of(service.folder, tmp_path_factory.mktemp("home"))
