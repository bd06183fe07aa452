"""What docs/deployment.md has an operator type is run, against a kubectl that writes down what it is told."""

import re
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
import yaml
from sqlalchemy.engine import URL, make_url
from support.deployed import KUBERNETES, ROOT, compose, containers_of, pod_of, rendered, stages
from typer.main import get_command

from infra import settings
from producer.cli.app import make_app

PAGE = (ROOT / "docs" / "deployment.md").read_text()
KUBECTL = """#!/bin/sh
printf '%s\\n' "$@" end >> "$TOLD"
"""
_REFUSED = b"SFATAL\0C28000\0Mmet over TLS\0\0"
"""An ErrorResponse of Postgres' protocol, without its head."""


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


@contextmanager
def tls_postgres(authority: trustme.CA) -> Iterator[URL]:
    """The TLS of a Postgres on this machine, which refuses whoever has agreed to it."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    server.set_alpn_protocols(["postgresql"])

    def answer() -> None:
        with suppress(OSError):  # a client that does not trust it hangs up first
            client, _ = listener.accept()
            with client:
                client.recv(8)
                client.sendall(b"S")
                with server.wrap_socket(client, server_side=True) as within:
                    within.recv(1000)
                    within.sendall(b"E" + (len(_REFUSED) + 4).to_bytes(4, "big") + _REFUSED)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(answer)
        yield make_url(f"postgresql://somebody@localhost:{listener.getsockname()[1]}/nightcourt")


def refusal(url: URL, query: dict[str, Any]) -> str:
    """Why libpq cannot connect."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(url.set(query=query).render_as_string(hide_password=False), connect_timeout=10)
    return str(caught.value)


@pytest.fixture
def of_the_job() -> dict[str, Any]:
    """The container that verifies what its pod has built."""
    [pod] = [pod for each in rendered(KUBERNETES / "engine") if (pod := pod_of(each))]
    return pod["containers"][0]


class TestVerifying:
    @pytest.mark.parametrize("where", ["compose", "kubernetes"])
    def test_what_is_built_is_verified_in_full(self, of_the_job: dict[str, Any], where: str):
        """The command's own parser takes it; the folder is the judge's, and what is read and written is mounted."""
        if where == "compose":
            command = shlex.split(re.search(r"engine-build \\\n +(nightcourt engine verify .*)", PAGE)[1])
            mounts = {volume.split(":")[1]: volume for volume in compose()["services"]["engine-build"]["volumes"]}
            mounts = {folder: not volume.endswith(":ro") for folder, volume in mounts.items()}
        else:
            command = of_the_job["command"]
            mounts = {each["mountPath"]: not each.get("readOnly") for each in of_the_job["volumeMounts"]}
        parser = get_command(make_app(["engine"]))
        for name in command[1:3]:
            parser = parser.commands[name]
        told = parser.make_context("verify", command[3:]).params
        by_default = parser.make_context("verify", ["/", "--pairs", "/"]).params
        assert {"soak", "per_length"} <= {name for name, value in told.items() if by_default[name] == value}
        assert str(told["folder"]) == stages()["judge-gpu"].environment["NIGHTCOURT_ENGINE_FOLDER"]
        for path, written in [("folder", True), ("report", True), ("checkpoint", False), ("pairs", False)]:
            folder = max((each for each in mounts if Path(told[path]).is_relative_to(each)), key=len)
            assert mounts[folder] == written, path

    def test_what_is_told_to_be_brought_is_what_is_read(self, of_the_job: dict[str, Any]):
        """The names of the files of pairs on the page are those that the Job reads."""
        pairs = of_the_job["command"][of_the_job["command"].index("--pairs") + 1]
        assert f"`{Path(pairs).name}` ([which ones]" in PAGE


class TestTls:
    @pytest.fixture(autouse=True)
    def as_in_an_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No file of this machine's own says whom to trust."""
        monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)

    def test_libpq_finds_whom_to_trust(self, secrets: dict[str, dict[str, str]]) -> None:
        """The file that the page names is Debian's, which the images have: libpq reads it, and knows a stranger."""
        query = dict(make_url(secrets["nightcourt-api"]["NIGHTCOURT_DATABASE_URL"]).query)
        assert query["sslmode"] == "verify-full"
        assert query["sslrootcert"] == "/etc/ssl/certs/ca-certificates.crt"
        if not Path(query["sslrootcert"]).exists():
            pytest.skip("this machine is no Debian with public authorities, as the images are")
        with tls_postgres(trustme.CA()) as url:
            assert "certificate verify failed" in refusal(url, query)

    def test_an_authority_of_ones_own_is_trusted_where_it_is_named(self, tmp_path: Path) -> None:
        """With its file named as the page has it, libpq agrees to TLS, and hears what the server says within."""
        authority = trustme.CA()
        [named] = set(re.findall(r"sslrootcert=(/ca/[\w.]+)", PAGE))
        file = tmp_path / named.removeprefix("/ca/")
        authority.cert_pem.write_to_path(str(file))
        with tls_postgres(authority) as url:
            assert "met over TLS" in refusal(url, {"sslmode": "verify-full", "sslrootcert": str(file)})

    def test_every_pod_is_given_that_file(self) -> None:
        """The patch of the page fits all that makes pods, which then mount the authority where the address has it."""
        [patch] = yaml.safe_load(block("yaml", "mountPath: /ca"))["patches"]
        assert "create configmap ca --from-file=ca.crt" in PAGE
        pods = [each for name in ("base", "cpu", "gpu") for each in rendered(KUBERNETES / name) if pod_of(each)]
        for manifest in pods:
            assert re.fullmatch(patch["target"]["kind"], manifest["kind"])
            for step in yaml.safe_load(patch["patch"]):
                extend(manifest, step)
            assert {"name": "ca", "configMap": {"name": "ca"}} in pod_of(manifest)["volumes"]
            mounts = pod_of(manifest)["containers"][0]["volumeMounts"]
            assert {"name": "ca", "mountPath": "/ca", "readOnly": True} in mounts


@pytest.mark.parametrize("process", ["callbacks", "judge-cpu", "judge-gpu"])
def test_the_times_to_end_are_those_that_are_set(process: str) -> None:
    """A row of the page has the default of the setting, and what compose and Kubernetes give to go with it."""
    pattern = rf"^\| {process} \| `NIGHTCOURT_(\w+)`: (\d+) \| `(\w+)` \| (\d+) \|$"
    [(setting, default, composed, clustered)] = re.findall(pattern, PAGE, re.MULTILINE)
    assert float(default) == settings.Settings.model_fields[setting.lower()].default
    assert composed == compose()["services"][process]["stop_grace_period"]
    component, _, kind = process.partition("-")
    [pod] = [
        pod_of(each)
        for each in rendered(KUBERNETES / (kind or "base"))
        if each["kind"] == "Deployment" and each["metadata"]["name"] == component
    ]
    assert int(clustered) == pod["terminationGracePeriodSeconds"]


class TestMonitoring:
    def test_prometheus_reads_every_pod(self, tmp_path: Path) -> None:
        """By the names of their ports it finds each pod that goes on running, once; Debian's takes the rest of it."""
        config = yaml.safe_load(block("yaml", "kubernetes_sd_configs"))
        [job] = config["scrape_configs"]
        [found], [kept] = job.pop("kubernetes_sd_configs"), job["relabel_configs"]
        assert found == {"role": "pod", "namespaces": {"names": ["nightcourt"]}}
        for each in (each for name in ("cpu", "gpu") for each in rendered(KUBERNETES / name)):
            if each["kind"] == "Deployment":
                ports = [port for container in containers_of(each) for port in container.get("ports", [])]
                assert [bool(re.fullmatch(kept["regex"], port["name"])) for port in ports] == [True]
        check_config(config, tmp_path)

    def test_prometheus_reads_every_service(self, tmp_path: Path) -> None:
        """By their names it asks all services of compose that go on running, where their images serve."""
        config = yaml.safe_load(block("yaml", "dns_sd_configs"))
        [job] = config["scrape_configs"]
        asked = {name: found["port"] for found in job["dns_sd_configs"] for name in found["names"]}
        images = {name: stages()[service["build"]["target"]].environment for name, service in running().items()}
        assert asked == {
            name: int(image["NIGHTCOURT_PORT" if name == "api" else "NIGHTCOURT_METRICS_PORT"])
            for name, image in images.items()
        }
        check_config(config, tmp_path)

    def test_prometheus_is_where_all_of_them_are(self) -> None:
        """The service that the page adds is on a network of every process that it reads."""
        added = yaml.safe_load(block("yaml", "prom/prometheus"))["services"]["prometheus"]
        assert all(set(added["networks"]) & set(service["networks"]) for service in running().values())

    def test_the_labels_are_those_that_the_policies_ask_for(self) -> None:
        """Each label of a namespace that the page sets is one by which a policy lets something through."""
        policies = (KUBERNETES / "base" / "network.yaml").read_text()
        told = set(re.findall(r"kubectl label namespace \S+ (nightcourt/[\w-]+)=true", PAGE))
        assert told == set(re.findall(r'\{(nightcourt/[\w-]+): "true"\}', policies))


def check_config(config: dict[str, Any], folder: Path) -> None:
    """Have Prometheus' own tool read a configuration beside the alerts, where it is installed."""
    (folder / "alerts.yaml").write_bytes((ROOT / "infra" / "grafana" / "alerts.yaml").read_bytes())
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    if shutil.which("promtool") is not None:
        subprocess.run(["promtool", "check", "config", folder / "prometheus.yml"], check=True)  # noqa: S607


def running() -> dict[str, dict[str, Any]]:
    """The services of ours that go on running."""
    return {
        name: service
        for name, service in compose()["services"].items()
        if "build" in service and name not in {"migrate", "engine-build"}
    }


def extend(manifest: Any, step: dict[str, Any]) -> None:
    """Carry out a step of a JSON patch that adds to the end of a list."""
    assert step["op"] == "add"
    *path, last = step["path"].strip("/").split("/")
    assert last == "-"
    for name in path:
        manifest = manifest[int(name) if isinstance(manifest, list) else name]
    manifest.append(step["value"])
