"""The manifests, rendered and checked against the schemas of Kubernetes and of KEDA, without a cluster."""

import re
import shutil
import subprocess
import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from support.deployed import KUBERNETES, ROOT, SECONDS_TO_END, TMP, containers_of, pod_of, rendered, stages

from infra import settings
from infra.settings import Settings
from producer.cli.app import COMMANDS

OVERLAYS = ["base", "cpu", "gpu", "engine"]
VERSIONS = ["1.30", "1.37"]
"""The oldest Kubernetes that the manifests are for, and the newest whose schemas are at hand."""
RENDERED = {name: list(rendered(KUBERNETES / name)) for name in OVERLAYS}
OBJECTS = {
    f"{overlay}/{each['kind']}/{each['metadata']['name']}": each for overlay in OVERLAYS for each in RENDERED[overlay]
}
PODS = {name: each for name, each in OBJECTS.items() if pod_of(each)}
POLICIES = {each["metadata"]["name"]: each["spec"] for each in RENDERED["base"] if each["kind"] == "NetworkPolicy"}
OUR_KEDA = {"ScaledObject": keda.ScaledObject, "TriggerAuthentication": keda.TriggerAuthentication}
KEDAS = [name for name, each in OBJECTS.items() if each["kind"] in OUR_KEDA]
TRIGGER_KEYS = {"query", "targetQueryValue", "activationTargetQueryValue"}
"""Of what KEDA's documentation lists for its postgresql trigger, what we use."""
STORES = {5432, 6379}
PRIVATE = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"}


def component_of(manifest: dict[str, Any]) -> str:
    """What the labels of the pods of an object say they are."""
    return manifest["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]


def selects(policy: dict[str, Any], component: str) -> bool:
    """Whether a policy is about the pods of a component."""
    selector = policy["podSelector"]
    wanted = selector.get("matchLabels", {}).get("app.kubernetes.io/component", component)
    listed = [each["values"] for each in selector.get("matchExpressions", [])]
    return wanted == component and all(component in values for values in listed)


class TestSchemas:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("name", [name for name in OBJECTS if name not in KEDAS])
    def test_every_object_is_one_that_kubernetes_knows(self, name, version):
        """Each field is in the schema of its kind, and nothing else is there."""
        kubernetes_validate.validate(OBJECTS[name], version, strict=True)

    @pytest.mark.parametrize("name", KEDAS)
    def test_every_object_of_keda_is_one_that_keda_knows(self, name):
        """It goes through the models made from KEDA's definitions unchanged: a field they do not know would be lost."""
        manifest = OBJECTS[name]
        model = OUR_KEDA[manifest["kind"]].model_validate(manifest)
        assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest

    def test_a_field_made_up_is_found(self):
        """The two checks above can fail."""
        [deployment] = [each for each in RENDERED["cpu"] if each["metadata"]["name"] == "judge" and pod_of(each)]
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(
                {**deployment, "spec": {**deployment["spec"], "replica": 2}}, VERSIONS[0], strict=True
            )
        scaled = next(each for each in RENDERED["gpu"] if each["kind"] == "ScaledObject")
        wrong = {**scaled, "spec": {**scaled["spec"], "minReplicas": 0}}
        dumped = keda.ScaledObject.model_validate(wrong).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert dumped != wrong

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_kustomize_renders_the_same(self, overlay):
        """Where kubectl is at hand, its kustomize makes of a folder what these tests make of it."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.skip("kubectl is not on this machine; the renderer of the tests stands in for its kustomize")
        ended = subprocess.run([kubectl, "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=True)

        def key(manifest: dict[str, Any]) -> tuple[str, str]:
            return manifest["kind"], manifest["metadata"]["name"]

        assert sorted(yaml.safe_load_all(ended.stdout), key=key) == sorted(RENDERED[overlay], key=key)

    def test_every_file_is_part_of_something(self):
        """No manifest lies about that no kustomization names."""
        named = {
            (folder / resource).resolve()
            for folder in (KUBERNETES / name for name in OVERLAYS)
            for resource in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        }
        lying = {path.resolve() for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"}
        assert lying <= named


@pytest.mark.parametrize("name", PODS)
class TestEveryPod:
    def test_it_is_confined(self, name):
        """It is no root, has no token of the cluster's, and its containers can neither gain rights nor write."""
        pod = pod_of(PODS[name])
        assert pod["serviceAccountName"] == "nightcourt"
        assert pod["automountServiceAccountToken"] is False
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == stages()["service"].all("USER")[0]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(PODS[name]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_it_says_what_it_needs(self, name):
        """Processor and memory are asked for, and memory is bounded."""
        for container in containers_of(PODS[name]):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]

    def test_it_can_write_where_it_has_to(self, name):
        """Its one folder for that is a volume, and every mount has its volume."""
        pod = pod_of(PODS[name])
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in containers_of(PODS[name]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert TMP in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}

    def test_its_images_and_commands_are_ours(self, name):
        """Images carry the version of the project and are built by the Dockerfile; commands exist."""
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        commands = set(COMMANDS)
        for container in containers_of(PODS[name]):
            target = container["image"].removeprefix("nightcourt-").removesuffix(f":{version}")
            assert container["image"] == f"nightcourt-{target}:{version}"
            assert target in stages()
            program, *rest = container["command"]
            if program == "nightcourt":
                assert rest[0] in commands
            elif program == "python":
                assert rest[:2] == ["-P", "-m"]
                assert (ROOT / rest[2].replace(".", "/")).with_suffix(".py").is_file()
            else:
                assert program == "cp"

    def test_its_settings_are_settings(self, name):
        """What it is given beside the common settings is a setting, with a value that it can have."""
        for container in containers_of(PODS[name]):
            given = {each["name"]: each["value"] for each in container.get("env", [])}
            fields = {key.removeprefix("NIGHTCOURT_").lower(): value for key, value in given.items()}
            assert set(fields) <= set(Settings.model_fields)
            settings.load(**fields)

    def test_it_has_the_time_to_end_that_it_needs(self, name):
        """What it has begun is ended before it is killed, what comes before it is told included."""
        if PODS[name]["kind"] == "Deployment":
            pod = pod_of(PODS[name])
            before = pod["containers"][0].get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
            left = pod["terminationGracePeriodSeconds"] - before["sleep"]["seconds"]
            assert left > 1.5 * SECONDS_TO_END.get(component_of(PODS[name]), 0)

    def test_it_hears_when_it_is_told_to_end(self, name):
        """The first process of a namespace is deaf to SIGTERM until it handles it, so none of ours is the first."""
        assert pod_of(PODS[name])["shareProcessNamespace"] is True

    def test_it_has_the_time_to_start_that_its_probe_gives(self, name):
        """A rollout is not said to have failed while its pods may still be starting."""
        if PODS[name]["kind"] == "Deployment":
            probe = pod_of(PODS[name])["containers"][0]["startupProbe"]
            allowed = probe["periodSeconds"] * probe["failureThreshold"]
            assert PODS[name]["spec"].get("progressDeadlineSeconds", 600) > allowed

    def test_its_probes_mean_progress(self, name):
        """The API answers for itself; all others are asked for the pulse where their image leaves it."""
        manifest = PODS[name]
        container = pod_of(manifest)["containers"][0]
        probes = [container.get(probe) for probe in ("startupProbe", "livenessProbe")]
        if manifest["kind"] == "Job":
            assert probes == [None, None]
        elif component_of(manifest) == "api":
            assert [probe["httpGet"]["path"] for probe in probes] == ["/livez", "/livez"]
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        else:
            target = container["image"].removeprefix("nightcourt-").partition(":")[0]
            pulse = stages()[target].environment["NIGHTCOURT_PULSE_FILE"]
            for probe in probes:
                assert probe["exec"]["command"] == ["python", "-m", "infra.pulse", pulse, "120"]


class TestService:
    def test_the_common_settings_are_settings(self):
        """What the config map holds and what the secret has to hold are settings, with values they can have."""
        [config] = [each for each in RENDERED["base"] if each["kind"] == "ConfigMap"]
        fields = {key.removeprefix("NIGHTCOURT_").lower(): value for key, value in config["data"].items()}
        assert set(fields) <= set(Settings.model_fields)
        settings.load(**fields)

    def test_each_process_has_a_secret_of_its_own(self):
        """Where the stores are, and as whom, is told to each apart; docs/deployment.md makes what is named."""
        made = set(re.findall(r"secret generic (nightcourt-[\w$]+)", (ROOT / "docs" / "deployment.md").read_text()))
        named = set()
        for each in PODS.values():
            for container in containers_of(each):
                secrets = [
                    source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source
                ]
                process = {"judge": "worker"}.get(component_of(each), component_of(each))
                assert secrets in ([], [f"nightcourt-{process}"])
                named |= set(secrets)
        assert named == {f"nightcourt-{process}" for process in ("migrate", "api", "dispatcher", "worker", "callbacks")}
        assert {"nightcourt-migrate", "nightcourt-$process"} <= made

    def test_nothing_secret_is_in_the_repository(self):
        """Secrets are named and never held."""
        assert "Secret" not in {each["kind"] for each in OBJECTS.values()}

    @pytest.mark.parametrize("overlay", ["cpu", "gpu"])
    def test_whatever_serves_survives_a_drained_node(self, overlay):
        """Every Deployment has a budget that selects its pods, and that lets a node be drained."""
        budgets = [each["spec"] for each in RENDERED[overlay] if each["kind"] == "PodDisruptionBudget"]
        for each in RENDERED[overlay]:
            if each["kind"] != "Deployment":
                continue
            labels = each["spec"]["template"]["metadata"]["labels"]
            [budget] = [spec for spec in budgets if spec["selector"]["matchLabels"] == labels]
            replicas = each["spec"].get("replicas")
            assert budget.get("maxUnavailable") == 1 or budget["minAvailable"] < replicas
            assert each["spec"]["selector"]["matchLabels"] == labels

    def test_one_judge_takes_the_others_place(self):
        """The small judge and the real one are the same Deployment, so that they never judge side by side."""
        for overlay in ("cpu", "gpu"):
            judges = [each for each in RENDERED[overlay] if pod_of(each) and component_of(each) == "judge"]
            assert [each["metadata"]["name"] for each in judges] == ["judge"]

    def test_a_migration_is_a_job_of_its_versions_own(self):
        """A Job cannot be changed, so its name carries the version."""
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        jobs = [each["metadata"]["name"] for each in RENDERED["base"] if each["kind"] == "Job"]
        assert jobs == [f"migrate-{version.replace('.', '-')}"]


class TestNetwork:
    def test_nothing_is_allowed_that_is_not_allowed_by_name(self):
        """The first policy selects every pod, both ways, and allows nothing."""
        assert POLICIES["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}

    @pytest.mark.parametrize("component", ["api", "dispatcher", "judge", "migrate", "engine-build", "callbacks"])
    def test_only_callbacks_reach_the_world(self, component):
        """Everything else reaches names and the stores on private addresses, and the engine's build nothing."""
        world = []
        for name, policy in POLICIES.items():
            for rule in policy.get("egress", []) if selects(policy, component) else []:
                blocks = {peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer}
                if name == "stores":
                    assert blocks == PRIVATE
                    assert {port["port"] for port in rule["ports"]} == STORES
                elif name != "names":
                    world += blocks
        assert bool(world) == (component == "callbacks")
        if component == "engine-build":
            assert not any(selects(policy, component) for name, policy in POLICIES.items() if name != "nothing")

    def test_the_world_has_no_private_addresses(self):
        """Callbacks cannot reach what is inside, whatever a producer's URL resolves to."""
        [rule] = POLICIES["callbacks"]["egress"]
        v4, v6 = (peer["ipBlock"] for peer in rule["to"])
        inside = {"10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}
        assert inside <= set(v4["except"])
        assert v6 == {"cidr": "2000::/3"}

    def test_only_the_api_is_reached_by_producers(self):
        """Its port is, from namespaces that carry a label; beside it the numbers alone are open to anybody."""
        assert {name for name, policy in POLICIES.items() if policy.get("ingress")} == {"producers", "metrics"}
        policy = POLICIES["producers"]
        [rule] = policy["ingress"]
        assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "api"}
        assert rule["ports"] == [{"protocol": "TCP", "port": 8300}]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"nightcourt/may-file": "true"}}}]

    @pytest.mark.parametrize("component", ["api", "dispatcher", "callbacks", "judge"])
    def test_prometheus_and_a_collector_are_let_through_by_their_namespaces(self, component):
        """Numbers are read on the ports where each process serves them, and spans go out, where labels allow it."""
        assert selects(POLICIES["metrics"], component)
        [rule] = POLICIES["metrics"]["ingress"]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"nightcourt/may-scrape": "true"}}}]
        served = {
            port["containerPort"]
            for each in PODS.values()
            if component_of(each) == component
            for port in pod_of(each)["containers"][0]["ports"]
        }
        images = [stages()[name].environment for name in ("service", "judge-cpu", "judge-gpu")]
        wanted = {int(each["NIGHTCOURT_METRICS_PORT"]) for each in images}
        assert served == ({8300} if component == "api" else wanted)
        assert served <= {port["port"] for port in rule["ports"]} == {8300} | wanted
        assert {each["NIGHTCOURT_METRICS_HOST"] for each in images} == {"0.0.0.0"}  # noqa: S104 - in a container
        assert selects(POLICIES["traces"], component)
        assert POLICIES["traces"]["egress"] == [
            {
                "to": [{"namespaceSelector": {"matchLabels": {"nightcourt/takes-traces": "true"}}}],
                "ports": [{"protocol": "TCP", "port": 4318}],
            }
        ]


class TestScaling:
    def test_judges_on_gpus_go_down_to_none(self):
        """KEDA scales the Deployment that is there, from none, and the Deployment does not say how many."""
        [scaled] = [each["spec"] for each in RENDERED["gpu"] if each["kind"] == "ScaledObject"]
        [judge] = [each for each in RENDERED["gpu"] if pod_of(each) and component_of(each) == "judge"]
        assert scaled["scaleTargetRef"] == {"name": judge["metadata"]["name"]}
        assert scaled["minReplicaCount"] == 0
        assert "replicas" not in judge["spec"]

    def test_the_trigger_asks_postgres(self):
        """Its keys are those of KEDA's postgresql trigger, and its connection comes from a secret."""
        [scaled] = [each["spec"] for each in RENDERED["gpu"] if each["kind"] == "ScaledObject"]
        [authentication] = [each for each in RENDERED["gpu"] if each["kind"] == "TriggerAuthentication"]
        [trigger] = scaled["triggers"]
        assert trigger["type"] == "postgresql"
        assert set(trigger["metadata"]) == TRIGGER_KEYS
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert [each["parameter"] for each in authentication["spec"]["secretTargetRef"]] == ["connection"]

    def test_an_engine_is_read_from_the_nodes_own_disk(self):
        """Each judge copies the engine from the shared volume that the build fills, and is allowed one GPU."""
        [judge] = [pod_of(each) for each in RENDERED["gpu"] if pod_of(each) and component_of(each) == "judge"]
        [build] = [pod_of(each) for each in RENDERED["engine"] if pod_of(each)]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for pod in (judge, build)
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert claims["shared"] == claims["engine"] == "engine"
        made = {each["metadata"]["name"] for each in RENDERED["engine"] if each["kind"] == "PersistentVolumeClaim"}
        assert set(claims.values()) == made
        built = build["initContainers"][0]["command"][4]
        verified = build["containers"][0]["command"][3]
        source, target = judge["initContainers"][0]["command"][-2:]
        folder = stages()["judge-gpu"].environment["NIGHTCOURT_ENGINE_FOLDER"]
        assert built == verified
        assert built.removeprefix("/engine/") == source.removeprefix("/shared/") == folder.removeprefix(target)
        assert judge["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
