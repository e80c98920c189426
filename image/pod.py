"""Reads from the manifests how a pod runs the image, so that a container on this machine runs as it does there."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from k8s.render import render


class Pod(NamedTuple):
    """How production runs a pod."""

    spec: dict[str, Any]
    settings: dict[str, str]
    """Environment of the container, from the ConfigMap."""

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        return only

    @property
    def grace_seconds(self) -> int:
        """Time from the deletion of a pod until the kubelet kills it."""
        return int(self.spec["terminationGracePeriodSeconds"])

    @property
    def pause_seconds(self) -> int:
        """Time between the deletion of a pod and SIGTERM."""
        return int(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])

    def probe(self, name: str) -> "Probe":
        """Return a probe: `startupProbe`, `readinessProbe` or `livenessProbe`."""
        probe = self.container[name]
        return Probe(probe.get("periodSeconds", 10), probe.get("timeoutSeconds", 1), probe.get("failureThreshold", 3))


class Probe(NamedTuple):
    """How often the kubelet asks. The defaults above are Kubernetes'."""

    period: int
    """Seconds."""
    timeout: int
    """Seconds."""
    failures: int
    """Failures in a row that count."""


def pod(*components: str) -> Pod:
    """Render production's manifests with these components. Needs kubectl."""
    objects = list(yaml.safe_load_all(render("production", components)))
    deployment = next(item for item in objects if item["kind"] == "Deployment")
    settings = next(
        item for item in objects if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("chestct-")
    )
    return Pod(deployment["spec"]["template"]["spec"], settings["data"])


def run_options(pod: Pod, folder: Path) -> list[str]:
    """Translate the manifest into options of `podman run` or `docker run`.

    The volumes are new folders in `folder`. A Secret is a folder there of the Secret's name, which holds its files.
    """
    user, inside = pod.spec["securityContext"], pod.container["securityContext"]
    limits = pod.container["resources"]["limits"]
    options = ["--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--cpus", limits["cpu"]]
    options += ["--memory", limits["memory"].lower().removesuffix("i")]
    options += ["--read-only"] if inside["readOnlyRootFilesystem"] else []
    options += [] if inside["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]
    options += [f"--cap-drop={name.lower()}" for name in inside["capabilities"]["drop"]]
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod.spec["volumes"] if "secret" in volume}
    for mount in pod.container["volumeMounts"]:
        if mount["name"] in secrets:
            options += ["--volume", f"{folder / secrets[mount['name']]}:{mount['mountPath']}:ro"]
            continue
        empty = folder / mount["name"]
        empty.mkdir()
        empty.chmod(0o777)  # like an emptyDir
        options += ["--volume", f"{empty}:{mount['mountPath']}"]
    environment = {item["name"]: item["value"] for item in pod.container["env"]} | pod.settings
    return options + [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
