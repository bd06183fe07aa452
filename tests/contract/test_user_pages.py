"""What the README and the pages for users name is there."""

import re
from pathlib import Path

import pytest

from producer import client

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_readme_leads_to_every_page(page: Path):
    """A page that the README does not name is found by nobody."""
    assert f"(docs/{page.name})" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_of_python_are_python(page: Path):
    """What a reader is to copy can be compiled."""
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        compile(snippet, f"{page.name}[{number}]", "exec")


def test_the_page_of_the_client_names_what_there_is():
    """Each call in its table is one of both clients, or a function beside them; each exception can be imported."""
    calls, raised = re.findall(r"\n\n\|.*?\n\n", CLIENT, re.DOTALL)
    for name in re.findall(r"`(\w+)(?:\([^`]*\))?`", calls):
        beside = hasattr(client, name)
        assert beside or (hasattr(client.Client, name) and hasattr(client.AsyncClient, name)), name
    names = set(re.findall(r"`([A-Z]\w+)`", raised))
    assert names
    assert names <= set(client.__all__)
