"""Settings whose times contradict each other are refused, and the message says which and why."""

import pytest
import yaml
from support.program import ROOT

from infra.local.tree import applications
from infra.settings import Settings, is_url, load
from schemas.message import VISIBILITY_SECONDS
from schemas.problems import BAD_SETTING, Problem


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"heartbeat_seconds": 30}, ["HEARTBEAT_SECONDS (30)", "half of NIGHTCOURT_LEASE_SECONDS (60)"]),
        ({"lease_seconds": 20}, ["HEARTBEAT_SECONDS (10)", "half of NIGHTCOURT_LEASE_SECONDS (20)"]),
        ({"sweep_seconds": 60, "hint_seconds": 90}, ["SWEEP_SECONDS (60)", "NIGHTCOURT_LEASE_SECONDS (60)"]),
        ({"sweep_seconds": 30}, ["SWEEP_SECONDS (30)", "NIGHTCOURT_HINT_SECONDS (30)"]),
        ({"hint_seconds": 5}, ["SWEEP_SECONDS (5)", "NIGHTCOURT_HINT_SECONDS (5)"]),
        ({"poll_seconds": 5}, ["POLL_SECONDS (5)", "NIGHTCOURT_SWEEP_SECONDS (5)"]),
        ({"engine_deadline_seconds": 10}, ["HEARTBEAT_SECONDS (10)", "NIGHTCOURT_ENGINE_DEADLINE_SECONDS (10)"]),
        ({"lease_seconds": 300}, ["LEASE_SECONDS (300)", "under 300", "Redis"]),
        ({"hint_seconds": 301}, ["HINT_SECONDS (301)", "under 300", "Redis"]),
        ({"drain_seconds": 3600}, ["DRAIN_SECONDS (3600)", "under 300", "Redis"]),
        (
            {"engine": "tensorrt_llm", "engine_folder": "/engine", "engine_timeout_seconds": 395},
            ["ENGINE_TIMEOUT_SECONDS (395) must be 205 s under NIGHTCOURT_ENGINE_DEADLINE_SECONDS (600)"],
        ),
        (
            {"engine": "openai_server", "engine_url": "http://host/v1", "engine_request_seconds": 700},
            ["ENGINE_REQUEST_SECONDS (700)", "NIGHTCOURT_ENGINE_DEADLINE_SECONDS (600)"],
        ),
        (
            {"engine": "openai_server", "engine_url": "http://host/v1", "engine_patience_seconds": 600},
            ["ENGINE_PATIENCE_SECONDS (600)", "NIGHTCOURT_ENGINE_DEADLINE_SECONDS (600)"],
        ),
        ({"bulk_slots": 8}, ["BULK_SLOTS (8)", "NIGHTCOURT_SLOTS (8)"]),
    ],
)
def test_times_that_contradict_each_other_are_refused(given: dict[str, object], named: list[str]) -> None:
    """The problem names both settings with their values, so that either can be mended."""
    with pytest.raises(Problem) as refused:
        load(**given)
    assert refused.value.kind is BAD_SETTING
    for words in named:
        assert words in refused.value.detail
    assert refused.value.detail.startswith("NIGHTCOURT_")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"lease_seconds": 4.0, "heartbeat_seconds": 0.5, "sweep_seconds": 0.5, "hint_seconds": 3.0},
        {"engine_timeout_seconds": 700.0},  # of an engine that is not asked for
        {"lease_seconds": 299.0, "hint_seconds": 299.0, "heartbeat_seconds": 149.0},
    ],
    ids=["defaults", "short", "another engine's", "long"],
)
def test_times_that_agree_are_taken(given: dict[str, float]) -> None:
    """The defaults agree, and so do times just within their bounds."""
    assert load(**given).lease_seconds < VISIBILITY_SECONDS


@pytest.mark.parametrize(
    "url", ["nonsense", "", "postgresql://user:hidden@host:port/name", "sqlite:///hidden", "http://host/hidden"]
)
def test_an_address_that_is_none_of_postgres(url: str) -> None:
    """It is refused by its name before anything connects, and not repeated: there may be a password in it."""
    with pytest.raises(Problem) as refused:
        load(database_url=url)
    assert refused.value.kind is BAD_SETTING
    assert refused.value.detail.startswith("NIGHTCOURT_DATABASE_URL: takes the URL of a Postgres")
    assert "hidden" not in refused.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "",
        "redis://user:hidden@host:port/0",
        "redis:///0",
        "http://host/hidden",
        "redis://[::1",
        "REDIS://host",
    ],
)
def test_an_address_that_is_none_of_redis(url: str) -> None:
    """It is refused by its name, and not repeated, too."""
    with pytest.raises(Problem) as refused:
        load(redis_url=url)
    assert refused.value.kind is BAD_SETTING
    assert refused.value.detail.startswith("NIGHTCOURT_REDIS_URL: takes the URL of a Redis")
    assert "hidden" not in refused.value.detail


@pytest.mark.parametrize("url", ["http://host", "HTTPS://host:8443/v1", "http://[::1]:8000"])
def test_an_address_on_the_web(url: str) -> None:
    """Whoever writes a scheme in capitals is understood, as by browsers."""
    assert is_url(url, {"http", "https"})


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://u:p%40@[::1]:6380/2?ssl_ca_certs=/etc/ssl/redis-ca.pem"]
)
def test_an_address_of_redis(url: str) -> None:
    """With and without port, database and options."""
    assert load(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://", "http://collector:otlp"])
def test_an_address_that_is_none_of_a_collector(url: str) -> None:
    """It is refused by its name where traces would otherwise be lost in silence."""
    with pytest.raises(Problem) as refused:
        load(traces_endpoint=url)
    assert refused.value.detail.startswith("NIGHTCOURT_TRACES_ENDPOINT: takes the URL of OTLP over HTTP")


@pytest.mark.parametrize(
    "url",
    ["postgresql://localhost/nightcourt", "postgres://host", "postgresql+psycopg://u:p%40@[::1]:5432/x?sslmode=allow"],
)
def test_an_address_of_postgres(url: str) -> None:
    """Each form that libpq or its driver knows is taken as it is."""
    assert load(database_url=url).database_url.get_secret_value() == url


def test_the_deployed_judges_know_who_died() -> None:
    """Each is told of a folder that outlives its container: a volume of compose's, the pod's own in Kubernetes."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for judge in ("cpu", "gpu"):
        service = services[f"judge-{judge}"]
        assert f"presence:{service['environment']['NIGHTCOURT_PRESENCE_DIR']}" in service["volumes"]
        for manifest in yaml.safe_load_all((ROOT / "infra" / "kubernetes" / judge / "judge.yaml").read_text()):
            if manifest["kind"] == "Deployment":
                pod = manifest["spec"]["template"]["spec"]
                [container] = pod["containers"]
                [folder] = [each["value"] for each in container["env"] if each["name"] == "NIGHTCOURT_PRESENCE_DIR"]
                [volume] = [each["name"] for each in container["volumeMounts"] if folder.startswith(each["mountPath"])]
                assert "emptyDir" in next(each for each in pod["volumes"] if each["name"] == volume)


def test_a_worker_is_given_the_time_that_it_takes_to_drain() -> None:
    """Whoever supervises a worker kills it later than it would have ended by itself."""
    programs = applications(1, drain_seconds=77.0, callback_seconds=5.0)
    [worker] = [program for program in programs if program.name == "worker"]
    assert worker.grace_seconds > 77.0
    drain = Settings.model_fields["drain_seconds"].default
    for judge in ("cpu", "gpu"):
        for manifest in yaml.safe_load_all((ROOT / "infra" / "kubernetes" / judge / "judge.yaml").read_text()):
            if manifest["kind"] == "Deployment":
                assert manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain
