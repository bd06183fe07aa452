"""docker-compose.yml, read as compose would read it, for every choice of profile."""

import re
import stat
import subprocess
import tomllib

import pytest
from support.deployed import COMPOSE, ROOT, SECONDS_TO_END, SECRETS, TMP, compose, stages

from infra import settings
from infra.roles import REDIS_RULES, REDIS_USER
from infra.settings import Settings
from producer.cli.app import COMMANDS

STAGES = stages()
PROFILES = {"plain": {"cpu"}, "gpu": {"gpu"}, "engine": {"engine"}, "without a judge": set()}
ALWAYS = {"postgres", "redis", "migrate", "api", "dispatcher", "callbacks"}
SERVICES = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
OF_COMPOSE = {"COMPOSE_PROFILES"}
"""What compose itself reads in .env."""


def variables_of_env_file(text: str) -> dict[str, str]:
    """What compose reads from a .env."""
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def commands() -> set[str]:
    """The commands that nightcourt has."""
    return set(COMMANDS)


class TestProfiles:
    @pytest.mark.parametrize("chosen", PROFILES.values(), ids=PROFILES)
    def test_the_services_of_a_profile_stand_on_their_own(self, chosen):
        """What a service waits for, mounts or is connected to is there under the same profile."""
        document = compose(profiles=chosen)
        for name, service in document["services"].items():
            assert set(service.get("depends_on", {})) <= set(document["services"]), name
            assert set(service.get("networks", [])) <= set(document["networks"]), name
            volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
            assert {volume for volume in volumes if not volume.startswith(".")} <= set(document["volumes"]), name

    @pytest.mark.parametrize(
        ("chosen", "judges"),
        [({"cpu"}, {"judge-cpu"}), ({"gpu"}, {"judge-gpu"}), (set(), set())],
        ids=["plain", "gpu", "none"],
    )
    def test_one_judge_runs_at_a_time(self, chosen, judges):
        """The GPU profile has the GPU's judge and not the small one, whose verdicts would mix with its own."""
        assert set(compose(profiles=chosen)["services"]) == ALWAYS | judges

    def test_the_small_judge_is_what_a_plain_up_starts(self, tmp_path):
        """The .env that the script writes names the profile, and compose lets --profile win over it."""
        subprocess.run([ROOT / "infra" / "docker" / "secrets.sh", tmp_path / "env"], check=True, capture_output=True)
        variables = variables_of_env_file((tmp_path / "env").read_text())
        services = compose(variables, profiles=set(variables["COMPOSE_PROFILES"].split(",")))["services"]
        assert "judge-cpu" in services
        assert "judge-gpu" not in services


class TestSecrets:
    @pytest.mark.parametrize("name", SECRETS)
    def test_a_password_has_no_default(self, name):
        """Without it compose refuses, and says what to do."""
        with pytest.raises(ValueError, match=re.escape("run infra/docker/secrets.sh first")):
            compose({key: value for key, value in SECRETS.items() if key != name})

    def test_no_password_stands_in_the_file(self):
        """What is in the address of a store is a variable."""
        found = re.findall(r"://([^@\n]*)@", COMPOSE.read_text())
        assert found
        for login in found:
            assert re.fullmatch(r"\w*:\$\{\w+:\?[^}]+\}", login), login

    def test_the_script_makes_them_up_for_the_owner_alone(self, tmp_path):
        """Each run has passwords of its own, long ones that need no quoting in a URL, in a file nobody else reads."""
        script = ROOT / "infra" / "docker" / "secrets.sh"
        made = []
        for name in ("one", "two"):
            subprocess.run([script, tmp_path / name], check=True, capture_output=True, umask=0)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
            variables = variables_of_env_file((tmp_path / name).read_text())
            made += [variables[key] for key in SECRETS]
        assert all(re.fullmatch(r"[0-9a-f]{64}", password) for password in made)
        assert len(set(made)) == 2 * len(SECRETS)

    def test_the_script_writes_over_nothing(self, tmp_path):
        """A second run leaves passwords as they are, since a database was made with them, and adds what is missing."""
        kept = "POSTGRES_PASSWORD=old\nCOMPOSE_PROFILES=gpu\n"
        (tmp_path / "env").write_text(kept)
        for _ in range(2):
            subprocess.run(
                [ROOT / "infra" / "docker" / "secrets.sh", tmp_path / "env"], check=True, capture_output=True
            )
        text = (tmp_path / "env").read_text()
        assert text.startswith(kept)
        assert sorted(line.split("=")[0] for line in text.splitlines()) == sorted([*SECRETS, "COMPOSE_PROFILES"])

    def test_a_file_that_somebody_wrote_becomes_one_like_the_scripts_own(self, tmp_path):
        """Readable by all, its last line without an end: it is closed to others, and no line is lost or joined."""
        (tmp_path / "env").write_text("GPU=1\nNIGHTCOURT_LOG_LEVEL=debug")
        (tmp_path / "env").chmod(0o644)
        subprocess.run([ROOT / "infra" / "docker" / "secrets.sh", tmp_path / "env"], check=True, capture_output=True)
        assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o600
        variables = variables_of_env_file((tmp_path / "env").read_text())
        assert set(variables) == {"GPU", "NIGHTCOURT_LOG_LEVEL", "COMPOSE_PROFILES", *SECRETS}
        assert (variables["NIGHTCOURT_LOG_LEVEL"], variables["COMPOSE_PROFILES"]) == ("debug", "cpu")

    def test_each_process_has_a_login_of_its_own(self):
        """The owner's password is told to what migrates alone, and what seals secrets to who makes and uses them."""
        processes = {"judge-cpu": "worker", "judge-gpu": "worker"}
        for name, service in OURS.items():
            told = service.get("environment", {})
            if name == "engine-build":
                continue
            process = processes.get(name, name)
            role = "nightcourt" if name == "migrate" else f"nightcourt_{process}"
            secret = SECRETS["POSTGRES_PASSWORD" if name == "migrate" else f"{process.upper()}_PASSWORD"]
            assert told["NIGHTCOURT_DATABASE_URL"] == f"postgresql://{role}:{secret}@postgres:5432/nightcourt"
            assert ("NIGHTCOURT_ROLE_PASSWORDS" in told) == (name == "migrate")
            assert ("NIGHTCOURT_SECRET_KEYS" in told) == (name in {"migrate", "api", "callbacks"})

    def test_the_service_is_no_master_of_redis(self):
        """It logs in as a user with its own keys and no dangerous command, the same as embedded."""
        command = " ".join(SERVICES["redis"]["command"][-1].replace("'", "").split())
        assert f'--user {REDIS_USER} on ">$SERVICE_PASSWORD" {" ".join(REDIS_RULES)}' in command
        for service in OURS.values():
            if "environment" in service:
                password = SECRETS["REDIS_SERVICE_PASSWORD"]
                assert service["environment"]["NIGHTCOURT_REDIS_URL"] == f"redis://{REDIS_USER}:{password}@redis:6379/0"


@pytest.mark.parametrize("name", SERVICES)
class TestEveryService:
    def test_it_is_hardened(self, name):
        """Its root is read-only, it can gain no right, and it may write and start what is named and so many."""
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert any(mount.startswith(TMP) for mount in service["tmpfs"])
        assert "privileged" not in service
        of_gpu = service.get("build", {}).get("target") == "judge-gpu"
        assert service["pids_limit"] == (4096 if of_gpu else {"callbacks": 2048}.get(name, 512))

    def test_it_is_not_root(self, name):
        """Ours have a user in the image; the others are told theirs, by number."""
        service = SERVICES[name]
        if "build" in service:
            assert "user" not in service
        else:
            assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])

    def test_it_comes_back_by_itself_or_was_to_end(self, name):
        """What runs is restarted; what is run once says how often it may be tried."""
        once = {"migrate": "on-failure:3", "engine-build": "no"}
        assert SERVICES[name]["restart"] == once.get(name, "unless-stopped")

    def test_its_health_is_checked(self, name):
        """A check of its own, or it was to end."""
        check = SERVICES[name]["healthcheck"]
        assert check.get("disable") is (True if name in {"migrate", "engine-build"} else None)
        if "test" in check:
            assert check["test"][0] in {"CMD", "CMD-SHELL"}
            assert {"interval", "timeout", "start_period", "retries"} <= set(check)

    def test_its_image_is_pinned(self, name):
        """Ours carry the version of the project, and the others a tag and a digest."""
        service = SERVICES[name]
        if "build" in service:
            version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
            assert service["image"] == f"nightcourt-{service['build']['target']}:{version}"
            assert service["build"]["target"] in STAGES
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", service["image"])

    def test_only_this_machine_reaches_it(self, name):
        """Ports are published on loopback, and the API's alone."""
        ports = SERVICES[name].get("ports", [])
        assert bool(ports) == (name == "api")
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_only_what_has_to_can_reach_out(self, name):
        """The stores' network leads nowhere; callbacks leave by another, and the API is published on a third."""
        beyond = {"api": {"edge"}, "callbacks": {"outside"}}
        service = SERVICES[name]
        if name == "engine-build":
            assert service["network_mode"] == "none"
        else:
            assert set(service["networks"]) == {"inside"} | beyond.get(name, set())
        assert compose()["networks"]["inside"] == {"internal": True}


class TestSettings:
    def test_what_the_page_says_to_set_is_passed_on(self):
        """Whatever docs/deployment.md has an operator of compose set reaches a service by .env, or is in its image."""
        page = (ROOT / "docs" / "deployment.md").read_text()
        of_compose = page.partition("## A cluster")[0] + page.partition("## Metrics and traces")[2]
        table = of_compose.partition("| in `.env` |")[2].partition("\n\n")[0]
        told = {name for row in table.splitlines() for name in re.findall(r"`([A-Z_]+)", row.split("|")[1])}
        told |= set(re.findall(r"`(NIGHTCOURT_\w+)`", of_compose))
        passed = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
        assert {"NIGHTCOURT_TRUSTED_PROXIES", "NIGHTCOURT_SLOTS", "PUBLISHED_PORT"} <= told
        fixed = {name for service in OURS.values() for name in STAGES[service["build"]["target"]].environment}
        assert told - passed - fixed <= OF_COMPOSE

    def test_what_is_left_out_of_env_is_as_the_settings_have_it(self):
        """A default in the compose file is the setting's own, written down twice; a GPU takes more at a time."""
        defaults = set(re.findall(r"\$\{NIGHTCOURT_(\w+):-([^}]*)\}", COMPOSE.read_text()))
        of_gpu = {("SLOTS", "80"), ("BULK_SLOTS", "64")}
        assert of_gpu < defaults
        for name, default in defaults - of_gpu:
            given = getattr(settings.load(**{name.lower(): default}), name.lower())
            assert (given or None) == (Settings.model_fields[name.lower()].default or None), name

    def test_who_files_and_who_sends_know_the_same_receivers(self):
        """The API refuses a receiver that it does not know of, so it is told where callbacks may go too."""
        allowed = {"NIGHTCOURT_CALLBACK_ALLOW": "hooks.internal"}
        told = compose(SECRETS | allowed)["services"]
        assert {name for name in OURS if allowed.items() <= told[name].get("environment", {}).items()} == {
            "api",
            "callbacks",
        }


@pytest.mark.parametrize("name", OURS)
class TestOurServices:
    def test_its_command_is_one_that_we_have(self, name):
        """`nightcourt COMMAND` is a command, and `python -P -m MODULE` a module, of ours whatever stands in /tmp."""
        program, *rest = OURS[name]["command"]
        if program == "nightcourt":
            assert rest[0] in commands()
        else:
            assert (program, *rest[:2]) == ("python", "-P", "-m")
            assert (ROOT / rest[2].replace(".", "/")).with_suffix(".py").is_file()

    def test_its_environment_is_one_that_settings_take(self, name):
        """Every variable that it is given is a setting, with a value that the setting can have."""
        given = OURS[name].get("environment", {})
        fields = {key.removeprefix("NIGHTCOURT_").lower(): value for key, value in given.items()}
        assert set(fields) <= set(Settings.model_fields)
        settings.load(**fields)

    def test_it_has_the_time_to_end_that_it_needs(self, name):
        """What it has begun is ended before docker kills it, with some seconds to spare."""
        told = re.fullmatch(r"(\d+)(s|m)", OURS[name].get("stop_grace_period", "10s"))
        assert int(told[1]) * {"s": 1, "m": 60}[told[2]] > 1.5 * SECONDS_TO_END.get(name.partition("-")[0], 0)

    def test_a_pulse_is_looked_for_where_it_is_left(self, name):
        """The file that the probe looks at is the one that the image tells the process to touch."""
        test = OURS[name]["healthcheck"].get("test", [])
        if "infra.pulse" in test:
            environment = STAGES[OURS[name]["build"]["target"]].environment
            assert test[test.index("infra.pulse") + 1] == environment["NIGHTCOURT_PULSE_FILE"]

    def test_a_volume_it_writes_to_is_its_users(self, name):
        """A new volume takes its owner from the image's folder, so the folder is made and given away there."""
        target = STAGES[OURS[name]["build"]["target"]]
        for volume in OURS[name].get("volumes", []):
            source, folder, *mode = volume.split(":")
            if not source.startswith(".") and mode != ["ro"]:
                assert f"install --directory --owner 10001 --group 10001 {folder}" in target.all("RUN")


class TestOrder:
    def test_the_tables_are_there_before_anything_uses_them(self):
        """All that runs waits for the migration to have succeeded, which waits for Postgres to answer."""
        for name, service in OURS.items():
            if name == "migrate":
                assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
            elif name != "engine-build":
                assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}

    def test_redis_keeps_what_it_was_told(self):
        """Hints are appended to a file on a volume, and none is evicted."""
        command = SERVICES["redis"]["command"][-1]
        assert "--appendonly yes" in command
        assert "--maxmemory-policy noeviction" in command
        assert SERVICES["redis"]["volumes"] == ["redis:/data"]
