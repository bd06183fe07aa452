"""What docs/gpu.md has somebody type on a GPU host: held to the Dockerfile and the settings, and its tests run."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from support.deployed import ROOT, stages
from support.gpu import build_engine, gpu_host

from infra.environment import child_environment
from infra.settings import Settings

PAGE = (ROOT / "docs" / "gpu.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


class TestEnvironment:
    def test_it_is_made_as_the_images_is(self):
        """By NVIDIA's own pip, since what gives a new environment a pip of its own need not be in that image."""
        of_image = " ".join(stages()["judge-gpu-environment"].all("RUN"))
        [made] = [line for line in COMMANDS if "-m venv" in line]
        assert f"{made} " in of_image
        installs = [line.partition(" install ")[0] for line in COMMANDS if " install " in line]
        assert len(installs) == 2
        assert all(f"{install} install " in of_image for install in installs)

    def test_pytest_is_one_that_reads_our_options(self):
        """An older one, as NVIDIA's image has, knows no `[tool.pytest]`, and would be left in place."""
        group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["test"]
        [wanted] = [each for each in group if each.startswith("pytest>")]
        assert any(f"'{wanted}'" in line for line in COMMANDS)


class TestTests:
    def test_they_run_where_the_library_warns(self, tmp_path: Path):
        """Over the stand-in they pass, none skipped, though it warns when it is imported, as the real one does."""
        folder = build_engine(tmp_path, pairs=20, max_batch_size=8, max_num_tokens=4096, max_seq_len=2048)
        [command] = [line for line in COMMANDS if "pytest tests/gpu" in line]
        told = command.partition("python -m ")[2].split()
        with gpu_host(warns=True):
            ended = subprocess.run(
                [sys.executable, "-m", *told, "-k", "TestEngine"],
                cwd=ROOT,
                env=child_environment({"NIGHTCOURT_ENGINE_FOLDER": str(folder)}),
                capture_output=True,
                text=True,
                check=False,
            )
        assert ended.returncode == 0, ended.stdout
        assert "deprecated" in ended.stdout
        assert "skipped" not in ended.stdout


class TestJudging:
    def test_whoever_submits_has_a_server_and_a_key(self):
        """The names that are exported are settings, and without these two the command goes to an embedded stack."""
        exported = {name for line in COMMANDS for name in re.findall(r"NIGHTCOURT_(\w+)=", line)}
        assert {name.lower() for name in exported} <= set(Settings.model_fields)
        assert {"SERVER", "KEY"} <= exported
