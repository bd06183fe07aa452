"""Guessing of keys: whoever sends wrong ones waits, longer each time, and nobody waits for another's."""

import pytest

from producer import guessing
from producer.guessing import Guesses


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock at some moment."""
    return Clock()


@pytest.fixture
def guesses(clock: Clock) -> Guesses:
    """Nobody has guessed yet."""
    return Guesses(clock)


def test_a_slip_costs_nothing(guesses: Guesses):
    """Some wrong keys may come from anybody, without a pause."""
    assert [guesses.wrong("192.0.2.1") for _ in range(guessing.FREE)] == [0.0] * guessing.FREE
    assert guesses.wait("192.0.2.1") == 0


def test_each_further_one_costs_twice_as_much(guesses: Guesses, clock: Clock):
    """Pauses grow to a minute and no further, and pass."""
    for _ in range(guessing.FREE):
        guesses.wrong("192.0.2.1")
    assert [guesses.wrong("192.0.2.1") for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert guesses.wait("192.0.2.1") == 60
    clock.now += 59
    assert guesses.wait("192.0.2.1") == 1
    clock.now += 1
    assert guesses.wait("192.0.2.1") == 0


def test_what_a_guesser_achieves_in_a_day(guesses: Guesses, clock: Clock):
    """Who sends as soon as they may has under 1,500 tries a day: of 256 bits that is nothing."""
    tries, end = 0, clock.now + 86400
    while clock.now < end:
        clock.now += guesses.wait("192.0.2.1")
        guesses.wrong("192.0.2.1")
        tries += 1
    assert tries < 1500


def test_nobody_waits_for_anothers_guesses(guesses: Guesses):
    """However much is guessed elsewhere, an address that sends no wrong key does not wait."""
    for number in range(5000):
        guesses.wrong(f"198.51.{number // 250}.{number % 250}")
    assert guesses.wait("192.0.2.1") == 0


def test_many_addresses_together_are_an_attack(guesses: Guesses):
    """While the process is guessed at from everywhere, one slip is free and not ten."""
    for number in range(guessing.ATTACK):
        guesses.wrong(f"198.51.{number // 250}.{number % 250}")
    assert [guesses.wrong("192.0.2.1") for _ in range(3)] == [0, 1, 2]


def test_it_is_forgotten(guesses: Guesses, clock: Clock):
    """After ten quiet minutes an address is as good as new, and after hours an attack is over."""
    for number in range(guessing.ATTACK):
        guesses.wrong(f"198.51.{number // 250}.{number % 250}")
    for _ in range(20):
        guesses.wrong("192.0.2.1")
    clock.now += guessing.FORGET_SECONDS * 10
    assert [guesses.wrong("192.0.2.1") for _ in range(3)] == [0, 0, 0]


def test_a_network_of_one_owner_is_one_source(guesses: Guesses):
    """In IPv6 a sender has 2**64 addresses to choose from: they count as one, and an IPv4 address in IPv6 as itself."""
    for number in range(guessing.FREE + 1):
        guesses.wrong(f"2001:db8:0:1::{number:x}")
        guesses.wrong("::ffff:192.0.2.1")
    assert guesses.wait("2001:db8:0:1:ffff::1") > 0
    assert guesses.wait("192.0.2.1") > 0
    assert guesses.wait("2001:db8:0:2::1") == 0


def test_it_takes_no_more_room_than_it_may(guesses: Guesses):
    """However many addresses guess, so many are kept, and those are the latest."""
    for number in range(guessing.MOST + 100):
        guesses.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guesses._guessers) == guessing.MOST
    assert next(iter(guesses._guessers)) == "10.0.0.100"


def test_a_client_without_an_address(guesses: Guesses):
    """What comes over a socket that has none is one source."""
    for _ in range(guessing.FREE + 1):
        guesses.wrong("")
    assert guesses.wait("") > 0
