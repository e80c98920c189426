"""What each component adds: keys, certificates, routes, scaling to zero, hints and quotas."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.render import HERE, OVERLAYS, render
from tests.manifests import (
    Objects,
    autoscaler,
    container,
    environment,
    find,
    namespace,
    pod,
    read_settings,
    rendered,
)
from tests.server import ROOT

PAGE = (ROOT / "docs/how-to/install-on-kubernetes.md").read_text(encoding="utf-8")


def with_component(*names: str) -> Objects:
    return rendered("production", names)


def mounted(objects: Objects, path: str) -> dict[str, Any]:
    """Return the Secret's volume below which a path of the container lies. The container only reads it."""
    (mount,) = [item for item in container(objects)["volumeMounts"] if path.startswith(item["mountPath"] + "/")]
    assert mount["readOnly"] is True
    assert "subPath" not in mount  # such a mount would never change
    (volume,) = [item["secret"] for item in pod(objects)["volumes"] if item["name"] == mount["name"]]
    assert volume["defaultMode"] == 0o440
    return volume  # type: ignore[no-any-return]


def test_every_component_is_in_the_guides_table_and_no_other() -> None:
    table = PAGE.partition("| component | needs | adds |")[2].partition("\n\n")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert listed == sorted(listed)
    assert set(listed) == {path.name for path in (HERE / "components").iterdir()}


def test_keys_come_from_a_mounted_secret_under_the_name_that_the_guide_gives_it() -> None:
    objects = with_component("api-keys")
    path = environment(objects)["CHESTCT_API_KEYS_FILE"]
    secret = mounted(objects, path)["secretName"]
    guide = (ROOT / "docs/how-to/rotate-keys.md").read_text(encoding="utf-8")
    assert f"create secret generic {secret} --from-file {Path(path).name} " in guide
    assert "Secret" not in {item["kind"] for item in objects}


def test_a_file_of_keys_is_never_committed(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in ("keys", "k8s/overlays/production/keys"):
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=tmp_path, check=False)
        assert done.returncode == 0, name


def test_the_certificate_is_the_one_of_a_tls_secret_and_the_probe_does_not_need_it() -> None:
    objects = with_component("tls")
    certificate, key = (environment(objects)[f"CHESTCT_GRPC_CERTIFICATE{suffix}"] for suffix in ("", "_KEY"))
    assert [Path(path).name for path in (certificate, key)] == ["tls.crt", "tls.key"]  # as the Secret's type has them
    assert mounted(objects, certificate) == mounted(objects, key)
    probe = container(objects)["readinessProbe"]
    assert probe["httpGet"] == {"path": "/readyz", "port": "http"}
    assert "grpc" not in probe


def test_keys_and_certificates_go_together() -> None:
    objects = with_component("api-keys", "tls")
    assert {"CHESTCT_API_KEYS_FILE", "CHESTCT_GRPC_CERTIFICATE"} <= environment(objects).keys()
    assert len({volume["name"] for volume in pod(objects)["volumes"]}) == 4


def test_the_ingress_lets_through_what_the_service_accepts() -> None:
    objects = with_component("ingress")
    ingress = find(objects, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    backend = path["backend"]["service"]
    names = {port["name"] for port in find(objects, "Service", backend["name"])["spec"]["ports"]}
    assert backend["port"]["name"] in names
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    notes = ingress["metadata"]["annotations"]
    size = notes["nginx.ingress.kubernetes.io/proxy-body-size"]
    read = read_settings(objects)
    assert int(size.removesuffix("m")) * 2**20 == read.max_body_bytes
    assert int(notes["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > read.request_timeout


def test_without_requests_there_is_no_pod_and_each_protocol_starts_one() -> None:
    objects = with_component("scale-to-zero")
    assert autoscaler(objects) == (0, 10)
    routes = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "InterceptorRoute"}
    triggers = find(objects, "ScaledObject", "chestct-requests")["spec"]["triggers"]
    assert [trigger["metadata"]["interceptorRoute"] for trigger in triggers] == sorted(routes)
    service = find(objects, "Service")["spec"]
    assert {route["target"]["portName"] for route in routes.values()} == {port["name"] for port in service["ports"]}
    for route in routes.values():
        assert route["target"]["service"] == "chestct"
        assert int(route["timeouts"]["responseHeader"].removesuffix("s")) > read_settings(objects).request_timeout
    (grpc,) = [port for port in service["ports"] if port["name"] == "grpc"]
    assert grpc["appProtocol"] == "kubernetes.io/h2c"
    assert "HorizontalPodAutoscaler" not in {item["kind"] for item in objects}


def test_a_hint_changes_no_pod_and_follows_what_runs_them() -> None:
    hint = find(with_component("vpa"), "VerticalPodAutoscaler")["spec"]
    assert hint["updatePolicy"]["updateMode"] == "Off"
    assert hint["targetRef"]["kind"] == "Deployment"
    assert find(with_component("vpa", "canary"), "VerticalPodAutoscaler")["spec"]["targetRef"]["kind"] == "Rollout"


def test_pods_may_use_the_secret_of_a_registry_with_a_password() -> None:
    account = find(with_component("private-registry"), "ServiceAccount")
    (secret,) = account["imagePullSecrets"]
    assert f"create secret docker-registry {secret['name']} " in PAGE


UNITS = {"": 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}


def amount(quantity: str) -> float:
    number = quantity.rstrip("mMGi")
    return float(number) * UNITS[quantity[len(number) :]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_quota_holds_every_pod_of_a_rollout_and_the_load_test(overlay: str) -> None:
    admin = rendered(overlay, ("quota",), "admin")
    hard = find(admin, "ResourceQuota")["spec"]["hard"]
    objects = rendered(overlay, ("load-test",))
    assert find(admin, "ResourceQuota")["metadata"]["namespace"] == namespace(objects)
    _, most = autoscaler(objects)
    pods = most + find(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    (load,) = find(objects, "Job", "chestct-load-test")["spec"]["template"]["spec"]["containers"]
    (filled,) = find(admin, "LimitRange")["spec"]["limits"]
    assert int(hard["pods"]) > pods
    for kind, default in (("requests", "defaultRequest"), ("limits", "default")):
        for name in ("cpu", "memory", "ephemeral-storage"):
            needed = pods * amount(container(objects)["resources"][kind][name])
            needed += amount(load["resources"][kind].get(name, filled[default][name]))
            assert needed <= amount(hard[f"{kind}.{name}"]), (kind, name)


def test_an_overlay_works_as_a_base_by_its_tag(tmp_path: Path) -> None:
    shutil.copytree(HERE, tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    section = PAGE.partition("## Keep your changes in your own repository")[2]
    text = section.partition("```yaml\n")[2].partition("```")[0]
    here, count = re.subn(r"https://github.com/OWNER/REPOSITORY//(k8s/\S+)\?ref=v1\.2\.3", r"../\1", text)
    assert count == 2
    own = tmp_path / "site"
    own.mkdir()
    (own / "kustomization.yaml").write_text(here, encoding="utf-8")
    done = subprocess.run(["kubectl", "kustomize", own], check=True, capture_output=True, text=True)
    objects = list(yaml.safe_load_all(done.stdout))
    usual = with_component("monitoring")
    assert sorted(item["kind"] for item in objects) == sorted(item["kind"] for item in usual)
    digest = yaml.safe_load(text)["images"][0]["digest"]
    assert container(objects)["image"] == f"ghcr.io/OWNER/REPOSITORY@{digest}"
    assert environment(objects)["CHESTCT_QUEUE_SIZE"] == "128"
    assert 'absent(chestct_model_info{namespace="chestct"})' in done.stdout


def tagged_repository(folder: Path) -> str:
    """Make a repository of the manifests with a tag, and return the address of its overlay by that tag."""
    shutil.copytree(HERE, folder / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"], ["tag", "v1.2.3"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return f"file://{folder}//k8s/overlays/production?ref=v1.2.3"


def test_git_fetches_an_overlay_by_its_tag(tmp_path: Path) -> None:
    address = tagged_repository(tmp_path / "elsewhere")
    own = tmp_path / "site"
    own.mkdir()
    (own / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [address]}), encoding="utf-8")
    done = subprocess.run(["kubectl", "kustomize", own], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == render("production")
