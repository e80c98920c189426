"""What the manifests promise, in every overlay as kubectl renders it."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
OVERLAYS = sorted(path.name for path in (ROOT / "k8s/overlays").iterdir())


@cache
def render(overlay: str) -> dict[str, dict[str, Any]]:
    """The overlay's objects by kind; no overlay has two of a kind."""
    text = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s/overlays" / overlay], check=True, capture_output=True, text=True
    ).stdout
    objects = list(yaml.safe_load_all(text))
    by_kind = {item["kind"]: item for item in objects}
    assert len(by_kind) == len(objects)
    return by_kind


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return render(request.param)


def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = pod(objects)["containers"]
    return only


def test_a_manifest_is_named_after_the_one_kind_it_holds() -> None:
    for path in (ROOT / "k8s").rglob("*.yaml"):
        (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        assert path.stem == document["kind"].lower()


def test_every_file_of_the_base_is_rendered() -> None:
    files = {path.stem for path in (ROOT / "k8s/base").glob("*.yaml")} - {"kustomization"}
    rendered = {kind.lower() for kind in render("production")}
    assert files <= rendered


def test_the_ports_are_those_the_service_listens_on(objects: dict[str, dict[str, Any]]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    assert ports == {"http": 3000, "grpc": Settings.model_fields["grpc_port"].default}
    exposed = {port["name"]: port["targetPort"] for port in objects["Service"]["spec"]["ports"]}
    assert exposed == {name: name for name in ports}


def test_the_probes_ask_where_the_container_listens(objects: dict[str, dict[str, Any]]) -> None:
    paths = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(objects)[name]
        assert probe["httpGet"]["port"] == "http"
        paths[name] = probe["httpGet"]["path"]
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def test_every_selector_takes_the_deployments_pods(objects: dict[str, dict[str, Any]]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels
    spread = pod(objects)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        spread,
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_the_autoscaler_owns_the_deployments_replicas(objects: dict[str, dict[str, Any]]) -> None:
    deployment, autoscaler = objects["Deployment"], objects["HorizontalPodAutoscaler"]["spec"]
    target = autoscaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert 1 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]
    assert "cpu" in container(objects)["resources"]["requests"]  # utilisation is a share of the request


def test_the_environment_names_settings_that_exist(objects: dict[str, dict[str, Any]]) -> None:
    settings = objects["ConfigMap"]["data"]
    assert container(objects)["envFrom"] == [{"configMapRef": {"name": objects["ConfigMap"]["metadata"]["name"]}}]
    assert set(settings) <= {PREFIX + name.upper() for name in Settings.model_fields}
    values = {name.removeprefix(PREFIX).lower(): value for name, value in settings.items()}
    Settings.model_validate(values)


def test_a_changed_setting_gives_the_configmap_a_new_name(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        (ROOT / "k8s/base/kustomization.yaml")
        .read_text(encoding="utf-8")
        .replace("CHESTCT_WORKERS=2", "CHESTCT_WORKERS=3"),
        encoding="utf-8",
    )
    for path in (ROOT / "k8s/base").glob("*.yaml"):
        if path.name != "kustomization.yaml":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text = subprocess.run(["kubectl", "kustomize", tmp_path], check=True, capture_output=True, text=True).stdout
    name = next(item["metadata"]["name"] for item in yaml.safe_load_all(text) if item["kind"] == "ConfigMap")
    assert name != render("production")["ConfigMap"]["metadata"]["name"]


def test_the_pod_meets_pod_security_restricted(objects: dict[str, dict[str, Any]]) -> None:
    security = pod(objects)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(objects).keys()
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod(objects)["volumes"])
    inside = container(objects)["securityContext"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(objects)["automountServiceAccountToken"] is False
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod(objects)["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]


def test_bentoml_writes_to_a_volume_since_the_root_is_read_only(objects: dict[str, dict[str, Any]]) -> None:
    home = next(item["value"] for item in container(objects)["env"] if item["name"] == "BENTOML_HOME")
    mounts = {mount["mountPath"]: mount["name"] for mount in container(objects)["volumeMounts"]}
    assert mounts[home] in {volume["name"] for volume in pod(objects)["volumes"]}


def test_the_grace_period_holds_the_drain_and_the_slowest_request(objects: dict[str, dict[str, Any]]) -> None:
    drain, slowest = (Settings.model_fields[name].default for name in ("drain_seconds", "request_timeout"))
    assert pod(objects)["terminationGracePeriodSeconds"] >= drain + slowest
