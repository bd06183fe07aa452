"""What docs/deployment.md has an operator type is run, against a kubectl that writes down what it is told."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.deployed import ROOT

from infra import settings

PAGE = (ROOT / "docs" / "deployment.md").read_text()
KUBECTL = """#!/bin/sh
printf '%s\\n' "$@" end >> "$TOLD"
"""


def block(language: str, having: str) -> str:
    """The one block of code of the page that has some words in it."""
    [found] = [each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if having in each]
    return found


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The secrets that the page's commands make, by name, each with its values."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which the page's commands call, is not on this machine")
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    told = tmp_path / "told"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TOLD": str(told)}
    subprocess.run(["/bin/sh", "-euc", block("sh", "secret generic nightcourt-$process")], env=environment, check=True)
    calls = [call.splitlines() for call in told.read_text().split("end\n")]
    return {
        call[call.index("generic") + 1]: dict(
            word.removeprefix("--from-literal=").split("=", 1) for word in call if word.startswith("--from-literal=")
        )
        for call in calls
        if "secret" in call
    }


class TestSecrets:
    def test_what_seals_is_told_to_who_seals_and_opens(self, secrets):
        """The key of callback secrets goes where compose gives it, and to no dispatcher and no judge."""
        sealing = {name for name, values in secrets.items() if "NIGHTCOURT_SECRET_KEYS" in values}
        assert sealing == {"nightcourt-migrate", "nightcourt-api", "nightcourt-callbacks"}
        assert len({secrets[name]["NIGHTCOURT_SECRET_KEYS"] for name in sealing}) == 1

    def test_each_process_logs_in_by_the_password_that_the_migration_sets(self, secrets):
        """What is told to a process is a setting, and its password is the one that migrate is told for it."""
        passwords = settings.load(role_passwords=secrets["nightcourt-migrate"]["NIGHTCOURT_ROLE_PASSWORDS"]).passwords()
        assert set(secrets) == {"nightcourt-migrate", *(f"nightcourt-{process}" for process in passwords)}
        for name, values in secrets.items():
            fields = {key.removeprefix("NIGHTCOURT_").lower(): value for key, value in values.items()}
            assert set(fields) <= set(settings.Settings.model_fields)
            settings.load(**fields)
            process = name.removeprefix("nightcourt-")
            if process in passwords:
                assert f"//nightcourt_{process}:{passwords[process]}@" in values["NIGHTCOURT_DATABASE_URL"]
