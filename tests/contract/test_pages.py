"""What the service shows to browsers: pages that need no other host, on machines that reach none."""

import re
from importlib import resources
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from infra.settings import Settings
from producer.api.app import create_app

APP = create_app(Settings())
FOLDER = Path(str(resources.files("producer.dashboard")))
SOURCES = [each for name in ("static", "templates") for each in sorted((FOLDER / name).iterdir())]
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


def foreign(text: str) -> list[str]:
    """Find the hosts that a text names."""
    return re.findall(r"//[A-Za-z0-9][\w.-]*\.[a-z]{2,}", text.replace(NAMESPACE, ""))


@pytest.fixture(scope="module")
def http() -> TestClient:
    """A client of an edge with nothing behind it."""
    return TestClient(APP, base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/docs", 200), ("/dashboard/", 401), ("/dashboard/login", 200), ("/dashboard/nothing", 404), ("/redoc", 404)],
)
def test_no_page_names_another_host(http: TestClient, path: str, status: int):
    """Nothing is fetched from anywhere else, nor does a page lead there."""
    answer = http.get(path)
    assert answer.status_code == status
    assert foreign(answer.text) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_nothing_that_pages_are_made_of_names_another_host(source: Path):
    """What holds for the pages above holds for those that need somebody signed in."""
    assert foreign(source.read_text()) == []


def test_the_operations_are_listed(http: TestClient):
    """The page that people are sent to has each operation of the document, runs nothing, and may fetch no script."""
    answer = http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "<script" not in answer.text
    for path, methods in APP.openapi()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in answer.text


def test_a_form_of_many_fields_is_refused(http: TestClient):
    """Anybody may send the form to sign in by; one that is no form of ours is their mistake, and not the service's."""
    answer = http.post("/dashboard/login", data={f"field-{number}": "" for number in range(21)})
    assert answer.status_code == 413
    assert "body_too_large" in answer.text
