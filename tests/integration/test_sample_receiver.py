"""The sample receiver, as a stranger finds it."""

import socket
from collections.abc import Iterator

import pytest
from support.sample import Sample, sample_receiver


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """The receiver, running."""
    with sample_receiver("whsec_cGxhaW4=", tmp_path_factory.mktemp("sample")) as sample:
        yield sample


@pytest.mark.parametrize("length", ["-1", "abc", "65537", "9" * 5000, "\N{SUPERSCRIPT TWO}", ""])
def test_a_length_that_is_none_or_too_much_is_refused(sample: Sample, length: str):
    """It is answered before any of the body is there, so nobody has it read without end."""
    with socket.create_connection(("127.0.0.1", sample.port), timeout=60) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode("latin-1"))
        assert connection.recv(64).split()[1] == b"400"
