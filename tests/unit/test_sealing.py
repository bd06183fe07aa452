"""Secrets at rest: sealed by the first key, opened by each, in their own place alone."""

import pytest

from infra import settings
from infra.sealing import NotOpenedError, Seals
from schemas.problems import Problem

OLD, NEW = "0123456789abcdef" * 4, "fedcba9876543210" * 4


def test_what_is_sealed_opens_in_its_place():
    """The same secret is sealed differently each time, says nothing of itself, and opens again."""
    seals = Seals([OLD])
    first, second = (seals.seal("whsec_hidden", "table:1") for _ in range(2))
    assert first != second
    assert "hidden" not in first
    assert seals.open(first, "table:1") == seals.open(second, "table:1") == "whsec_hidden"


def test_it_opens_nowhere_else_and_by_no_other_key():
    """Another row, a changed byte, a key that is missing and a text that was never sealed are each told apart."""
    sealed = Seals([OLD]).seal("whsec_hidden", "table:1")
    changed = sealed[:-6] + ("A" if sealed[-6] != "A" else "B") + sealed[-5:]
    for seals, text, place, why in (
        (Seals([OLD]), sealed, "table:2", "another place"),
        (Seals([OLD]), changed, "table:1", "changed"),
        (Seals([NEW]), sealed, "table:1", "is not among NIGHTCOURT_SECRET_KEYS"),
        (Seals([OLD]), "whsec_hidden", "table:1", "nightcourt migrate"),
    ):
        with pytest.raises(NotOpenedError, match=why):
            seals.open(text, place)


def test_keys_are_rotated_by_putting_a_new_one_first():
    """The new key seals, and the old one opens what it sealed."""
    before = Seals([OLD]).seal("whsec_hidden", "table:1")
    both = Seals([NEW, OLD])
    assert both.open(before, "table:1") == "whsec_hidden"
    assert not both.is_current(before)
    assert both.is_current(after := both.seal("whsec_hidden", "table:1"))
    assert Seals([NEW]).open(after, "table:1") == "whsec_hidden"


@pytest.mark.parametrize(
    ("key", "why"),
    [("changeme", "64 hexadecimal digits"), ("ab" * 31, "64 hexadecimal digits"), ("0" * 64, "not random")],
    ids=["default", "short", "zeros"],
)
def test_a_key_that_is_none_is_refused(key: str, why: str, tmp_path):
    """From the environment or from a file, with the variable's name and without the key."""
    (tmp_path / "keys").write_text(f"{OLD}\n{key}\n")
    for name, value in (("secret_keys", f"{OLD},{key}"), ("secret_keys_file", tmp_path / "keys")):
        with pytest.raises(Problem, match=f"NIGHTCOURT_{name.upper()}: key 2 is .*{why}") as refused:
            settings.load(**{name: value})
        assert key not in str(refused.value)


def test_whoever_seals_does_not_start_without_a_key():
    """It says what to set and how to make it."""
    with pytest.raises(Problem, match="openssl rand -hex 32"):
        settings.load().require_seals()
    settings.load(secret_keys=OLD).require_seals()
