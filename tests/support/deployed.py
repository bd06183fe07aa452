"""What is deployed, read as the tools that deploy it would: the Dockerfile, the compose file, the kustomizations."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = ROOT / "infra" / "kubernetes"

TMP = "/tmp"  # noqa: S108 (inside a container, where it is memory)
"""The one folder that a container can write to."""

SECRETS = {
    f"{name}_PASSWORD": name.lower().replace("_", "-") * 3
    for name in ("POSTGRES", "API", "DISPATCHER", "WORKER", "CALLBACKS", "REDIS", "REDIS_SERVICE")
} | {"SECRET_KEYS": "0123456789abcdef" * 4}
"""What infra/docker/secrets.sh would have written."""

SECONDS_TO_END = {
    "callbacks": Settings().callback_deadline_seconds,
    "judge": Settings().drain_seconds,
}
"""How long a process may go on with what it has begun when it is told to end."""


@dataclass
class Stage:
    """A stage of the Dockerfile."""

    base: str
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Its instructions, each with the rest of its line."""

    def all(self, instruction: str) -> list[str]:
        """What follows an instruction, each time that it stands there."""
        return [rest for word, rest in self.lines if word == instruction]

    def words(self, instruction: str) -> list[str]:
        """The last such instruction as the list of words that it has to be."""
        return json.loads(self.all(instruction)[-1])

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(word.split("=", 1) for rest in self.all("ENV") for word in shlex.split(rest))

    @property
    def probe(self) -> list[str]:
        """The command of the health check."""
        return json.loads(self.all("HEALTHCHECK")[-1].partition("CMD ")[2])


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile, by name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
        elif word:
            stage.lines.append((word, rest.strip()))
    return found


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Fill in variables as compose does: ${NAME:-default}, ${NAME:?complaint} and $$.

    Raises:
        ValueError: a variable that has to be set is not; the message is the complaint.
    """
    if isinstance(value, dict):
        return {key: interpolated(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, how, text = match["name"], match["how"], match["text"]
        if variables.get(name):
            return variables[name]
        if how == ":-":
            return text
        raise ValueError(text)

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?P<how>:[-?])(?P<text>[^}]*)\}", fill, value)


def compose(variables: Mapping[str, str] = SECRETS, *, profiles: set[str] | None = None) -> dict[str, Any]:
    """The compose file with its variables filled in, and of its services those that some profiles start."""
    document = interpolated(yaml.safe_load(COMPOSE.read_text()), variables)
    if profiles is not None:
        services = document["services"]
        document["services"] = {
            name: service
            for name, service in services.items()
            if not service.get("profiles") or profiles & set(service["profiles"])
        }
    return document


def rendered(folder: Path, *, namespace: str | None = None) -> Iterator[dict[str, Any]]:
    """The objects that `kubectl apply -k` would send for a folder, for what our kustomizations use of kustomize.

    Raises:
        ValueError: a kustomization uses more than is understood here.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - {"apiVersion", "kind", "namespace", "resources"}
    if unknown:
        raise ValueError(f"{folder}: {sorted(unknown)} would need a renderer of its own")
    namespace = namespace or kustomization.get("namespace")
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        if path.is_dir():
            yield from rendered(path, namespace=namespace)
            continue
        for each in yaml.safe_load_all(path.read_text()):
            if namespace and each["kind"] != "Namespace":
                each["metadata"]["namespace"] = namespace
            yield each


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The pod that an object makes, if it makes pods."""
    return manifest["spec"]["template"]["spec"] if manifest["kind"] in {"Deployment", "Job"} else None


def containers_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of the pod that an object makes."""
    pod = pod_of(manifest) or {}
    return [*pod.get("initContainers", []), *pod.get("containers", [])]
