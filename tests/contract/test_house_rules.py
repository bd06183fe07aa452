"""The house rules that a machine can hold us to: tools, sizes, locks, and pages that say what the code says."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import metrics_page, settings_page
from infra.settings import Settings
from schemas import problems
from schemas.problems import OutcomeError, ProblemKind

ROOT = Path(__file__).resolve().parents[2]
OURS = ("schemas", "infra", "producer", "worker", "benchmarks", "examples")
TOOLS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import rules": ["lint-imports"],
    "hadolint": ["hadolint", "infra/docker/Dockerfile"],
    "the Compose specification": ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
}
PROBLEM_KINDS = [kind for kind in vars(problems).values() if isinstance(kind, ProblemKind)]


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file in some folders of the repository."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def table_rows(page: str) -> dict[str, list[str]]:
    """The rows of the tables of a page, by the word in their first column."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    found = {row[0].strip("`"): row for row in rows}
    assert len(found) == len(rows), "a code stands in two rows"
    return found


class TestTools:
    @pytest.mark.parametrize("name", TOOLS)
    def test_the_tools_of_make_check_find_nothing(self, name: str):
        """Linter, formatter, types and import rules are clean."""
        program = Path(sys.executable).parent / TOOLS[name][0]
        if not program.exists():
            pytest.skip(f"{TOOLS[name][0]} is not installed beside this Python")
        ended = subprocess.run([program, *TOOLS[name][1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


class TestSizes:
    @pytest.mark.parametrize(("folders", "most"), [(OURS, 400), (("tests",), 600)], ids=["program", "tests"])
    def test_no_file_is_long(self, folders: tuple[str, ...], most: int):
        """A file that grows beyond a few screens wants to be two."""
        lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in sources(*folders)}
        assert {name: lines for name, lines in lengths.items() if lines > most} == {}


class TestDescriptions:
    def test_every_test_is_described_in_one_sentence(self):
        """A test's docstring is the sentence that it proves."""
        undescribed = []
        for file in sources("tests"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                    said = " ".join((ast.get_docstring(node) or "").split())
                    if not said.endswith(".") or re.search(r"[.!?] [A-Z`]", said):
                        undescribed.append(f"{file.relative_to(ROOT)}: {node.name}: {said!r}")
        assert undescribed == []


class TestDependencies:
    @pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda file: file.name)
    def test_every_pin_carries_its_hashes(self, lock: Path):
        """What is installed is known to the byte, wherever it comes from: one version, its hashes, and no address."""
        text = lock.read_text()
        assert "://" not in text
        assert not re.search(r"^-", text, re.MULTILINE), "an option of pip"
        logical = re.sub(r"\\\n\s*", " ", text)
        pins = [line for line in logical.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert pins
        for pin in pins:
            assert re.fullmatch(r"[a-z0-9._-]+==\S+( ; [^#]*?)?( +--hash=sha256:[0-9a-f]{64})+", pin), pin

    def test_the_client_alone_needs_next_to_nothing(self):
        """`pip install nightcourt` brings what the client needs: no server, no database, no queue, no model."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        names = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in project["dependencies"]}
        assert names == {"httpx2", "pydantic", "standardwebhooks"}

    def test_gpu_libraries_come_by_their_own_name_alone(self):
        """Only the extra called gpu asks for them."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {name: " ".join(wanted) for name, wanted in project["optional-dependencies"].items() if name != "gpu"}
        for name, wanted in extras.items():
            assert not re.search(r"torch|tensorrt|transformers|cuda|nvidia", wanted), name


class TestPages:
    def test_the_page_of_settings_says_what_the_settings_are(self):
        """docs/settings.md names every setting with its default and its meaning."""
        assert (ROOT / "docs" / "settings.md").read_text() == settings_page.render(), (
            "the page is behind; write it anew: .venv/bin/python -m infra.settings_page > docs/settings.md"
        )

    def test_the_page_of_metrics_says_what_the_metrics_are(self):
        """docs/metrics.md names every metric with its labels and its meaning."""
        assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page.render(), (
            "the page is behind; write it anew: .venv/bin/python -m infra.metrics_page > docs/metrics.md"
        )

    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_every_setting_is_described(self, name: str):
        """A setting has a sentence below it in the source, which is where the page takes it from."""
        assert (Settings.model_fields[name].description or "").endswith(".")

    def test_every_code_is_documented_once(self):
        """Problems and outcome errors have unique codes, and docs/problems.md has a row for each and no other."""
        codes = [kind.code for kind in PROBLEM_KINDS] + [error.value for error in OutcomeError]
        assert len(codes) == len(set(codes))
        assert set(table_rows((ROOT / "docs" / "problems.md").read_text())) == set(codes)

    @pytest.mark.parametrize("kind", PROBLEM_KINDS, ids=lambda kind: kind.code)
    def test_a_problems_row_gives_its_status_and_what_to_do(self, kind: ProblemKind):
        """The page names the HTTP status that the code comes with, when it happens and what to do about it."""
        _, status, happens, to_do = table_rows((ROOT / "docs" / "problems.md").read_text())[kind.code]
        assert status == str(int(kind.status))
        assert happens.endswith(".")
        assert to_do.endswith(".")

    def test_links_between_pages_lead_somewhere(self):
        """Every relative link of the README and of the pages in docs/ names a file that is there."""
        pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
        broken = [
            f"{page.relative_to(ROOT)}: {target}"
            for page in pages
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
            if not (page.parent / target).exists()
        ]
        assert broken == []
