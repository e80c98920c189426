"""kubectl applies the manifests to an API server in small: twice, and as the account that releases."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.render import ALL, COMBINATIONS, OVERLAYS, render
from tests.api_server import RESOURCES, Cluster, serve
from tests.manifests import Objects, find, rendered
from tests.server import ROOT

LOOKED_AT = {"events", "pods", "pods/log", "replicasets"}
"""What the release account reads without applying it."""


class Kubectl:
    """kubectl, against a cluster in small."""

    def __init__(self, cluster: Cluster, environment: dict[str, str]) -> None:
        self.cluster, self.environment = cluster, os.environ | environment

    def run(self, *arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
        return self.shell(["kubectl", *arguments], text)

    def shell(
        self, command: list[str], text: str | None = None, folder: Path = ROOT
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=folder,
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def apply(self, text: str) -> dict[str, str]:
        """Return what kubectl says of each object."""
        done = self.run("apply", "-f", "-", text=text)
        assert done.returncode == 0, done.stderr
        return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())

    def versions(self) -> dict[tuple[str, str, str], str]:
        return {key: item["metadata"].get("resourceVersion", "") for key, item in self.cluster.objects.items()}


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Kubectl]:
    cluster = Cluster()
    with serve(cluster, tmp_path) as environment:
        yield Kubectl(cluster, environment)


@pytest.fixture
def deployer(tmp_path: Path) -> Iterator[Kubectl]:
    cluster = Cluster(rules=find(rendered("production", kind="admin"), "Role", "deployer")["rules"])
    with serve(cluster, tmp_path) as environment:
        yield Kubectl(cluster, environment)


@pytest.mark.parametrize("components", [(), ALL], ids=["alone", "all"])
def test_a_second_apply_changes_nothing(components: tuple[str, ...], admin: Kubectl) -> None:
    text = render("production", components)
    assert set(admin.apply(text).values()) == {"created"}
    before = admin.versions()
    said = admin.apply(text)
    # kubectl always sends the selector of this kind, because its type asks to replace it as a whole.
    assert said.pop("poddisruptionbudget.policy/chestct") == "configured"
    assert set(said.values()) == {"unchanged"}
    assert admin.versions() == before
    assert admin.run("diff", "-f", "-", text=text).returncode == 0


def test_an_apply_says_what_it_changes_back(admin: Kubectl) -> None:
    text = render("production")
    admin.apply(text)
    admin.cluster.objects["services", "chestct", "chestct"]["spec"]["ports"][0]["port"] = 8080
    assert admin.run("diff", "-f", "-", text=text).returncode == 1
    said = admin.apply(text)
    assert {name for name, word in said.items() if word == "configured"} == {
        "service/chestct",
        "poddisruptionbudget.policy/chestct",
    }
    assert admin.cluster.objects["services", "chestct", "chestct"]["spec"]["ports"][0]["port"] == 80


def values(item: Any) -> Iterator[Any]:
    yield item
    for inside in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
        yield from values(inside)


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=lambda value: "-".join((value[0], *value[1])))
def test_no_manifest_says_what_the_api_server_drops_or_rewrites(chosen: tuple[str, tuple[str, ...]]) -> None:
    for item in rendered(*chosen):
        for value in values(item):
            assert value is not None, item["metadata"]["name"]
            assert value != [], item["metadata"]["name"]
            for kind in ("requests", "limits"):
                for name, quantity in value.get(kind, {}).items() if isinstance(value, dict) else ():
                    assert canonical(quantity), f"{item['metadata']['name']}: {name} {quantity}"


def canonical(quantity: str) -> bool:
    """Tell whether the API server would write the quantity in the same way: the largest unit that keeps it whole."""
    parts = re.fullmatch(r"([1-9]\d*)(m|k|M|G|Ki|Mi|Gi|)", quantity)
    if parts is None:
        return False
    number, unit = int(parts[1]), parts[2]
    return number % (1024 if unit in ("Ki", "Mi") else 1000) != 0 or unit in ("G", "Gi")


@pytest.mark.parametrize(
    ("quantity", "kept"),
    [("1", True), ("1000m", False), ("500m", True), ("0.5", False), ("2176Mi", True), ("2048Mi", False), ("2Gi", True)],
)
def test_a_quantity_is_canonical_in_its_largest_unit(quantity: str, kept: bool) -> None:
    assert canonical(quantity) is kept


def release_commands() -> list[list[str]]:
    """Return the kubectl commands of the release workflow's roll-out and undo that need no shell."""
    content = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text(encoding="utf-8"))
    runs = [step.get("run", "") for step in content["jobs"]["production"]["steps"]]
    commands = [run.split() for run in runs if run.startswith("kubectl ") and not re.search(r"[|;&$<>]", run)]
    applied = [command[3] for command in commands if command[1:3] == ["apply", "-k"]]
    assert applied == ["k8s/overlays/production", "before/k8s/overlays/production"]
    return commands


def test_the_release_account_can_do_what_the_release_workflow_does(deployer: Kubectl, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    shutil.copytree(ROOT / "k8s", tmp_path / "before" / "k8s")
    older = tmp_path / "before/k8s/overlays/production/kustomization.yaml"
    older.write_text(older.read_text(encoding="utf-8").replace("newTag: v", "newTag: v-before-"), encoding="utf-8")
    for command in release_commands():
        done = deployer.shell(command, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    inside = find(deployer.cluster.find("Deployment"), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert "v-before-0" in inside["image"]  # the workflow's last step of a failure was carried out, too


def test_the_release_account_can_apply_every_component(deployer: Kubectl) -> None:
    text = render("production", ALL)
    assert set(deployer.apply(text).values()) == {"created"}
    changed = re.sub(r"\n  name: ", "\n  annotations: {changed: now}\n  name: ", text)
    assert set(deployer.apply(changed).values()) == {"configured"}


@pytest.mark.parametrize("kind", ["configmaps", "pods", "events", "deployments", "replicasets"])
def test_the_release_account_can_look_at_what_failed(kind: str, deployer: Kubectl) -> None:
    assert deployer.run("get", kind).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "secrets"],
        ["delete", "deployment/chestct"],
        ["get", "pods", "--namespace", "kube-system"],
        ["create", "role", "more", "--verb=get", "--resource=secrets"],
        ["create", "rolebinding", "more", "--role=deployer", "--user=somebody"],
        ["create", "namespace", "other"],
        ["apply", "-k", "k8s/admin/production"],
    ],
    ids=" ".join,
)
def test_the_release_account_can_do_nothing_else(arguments: list[str], deployer: Kubectl) -> None:
    deployer.apply(render("production"))
    done = deployer.run(*arguments)
    assert done.returncode != 0
    assert "not allowed" in done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_role_names_every_kind_of_the_overlay_and_no_other(overlay: str) -> None:
    objects: Objects = [item for chosen in COMBINATIONS if chosen[0] == overlay for item in rendered(*chosen)]
    applied = {(item["apiVersion"].rpartition("/")[0], RESOURCES[item["apiVersion"]][item["kind"]]) for item in objects}
    rules = find(rendered(overlay, kind="admin"), "Role", "deployer")["rules"]
    verbs = {
        (group, kind): set(rule["verbs"]) for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]
    }
    assert {pair for pair in verbs if pair[1] not in LOOKED_AT} == applied
    assert all({"get", "create", "patch"} <= verbs[pair] for pair in applied)


def test_the_documented_command_removes_settings_that_no_revision_needs(admin: Kubectl) -> None:
    page = (ROOT / "docs/how-to/release-and-roll-back.md").read_text(encoding="utf-8")
    command = page.partition("## Remove old settings")[2].partition("```sh\n")[2].partition("```")[0]
    text = render("production")
    (name,) = set(re.findall(r"chestct-[0-9a-z]{10}\b", text))
    for generation in ("older", "old"):
        admin.apply(text.replace(name, f"chestct-{generation}").replace(":v0", f":v-{generation}-0"))
    admin.apply(text)
    replica_sets = admin.cluster.find("ReplicaSet")
    assert len(replica_sets) == 3
    admin.cluster.objects.pop(("replicasets", "chestct", replica_sets[0]["metadata"]["name"]))  # beyond the history
    done = admin.shell(["bash", "-euo", "pipefail", "-c", command])
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith('configmap "chestct-older" deleted')
    assert {item["metadata"]["name"] for item in admin.cluster.find("ConfigMap")} == {"chestct-old", name}
