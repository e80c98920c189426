"""What the workflows may do: nothing that can't be run here but a few commands of cluster and registry."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
# What needs a cluster, a registry or the repository's host, and the file that holds a cluster's address.
ELSEWHERE = {"cosign", "docker", "gh", "git", "install", "kind", "kubectl", "kustomize"}
HASH = re.compile(r"[\w-]+/[\w./-]+@[0-9a-f]{40}")


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]  # type: ignore[no-any-return]


def steps() -> list[Any]:
    return [
        pytest.param(step, id=f"{path.stem}-{name}-{number}")
        for path in WORKFLOWS
        for name, job in jobs(path).items()
        for number, step in enumerate(job["steps"])
    ]


def test_the_workflows_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["e2e", "model", "release", "test"]


@pytest.mark.parametrize("step", steps())
def test_a_step_runs_a_make_target_or_a_command_of_cluster_and_registry(step: dict[str, Any]) -> None:
    if "uses" in step:
        assert HASH.fullmatch(step["uses"])
        return
    (line,) = step["run"].strip().splitlines()
    assert not re.search(r"&&|\|\||;|`|\$\(", line), "one command a step"
    assert "${{" not in line, "an expression reaches the shell by an environment variable"
    command, *rest = line.split()
    if command == "make":
        assert rest[0] in TARGETS
    else:
        assert command in ELSEWHERE


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_bounds(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {}
    assert content["concurrency"]["group"]
    for job in content["jobs"].values():
        assert job["timeout-minutes"] > 0
        assert job["permissions"].get("contents") in ("read", "write")


def test_production_waits_for_a_person_and_goes_back_where_it_fails() -> None:
    job = jobs(ROOT / ".github/workflows/release.yaml")["production"]
    assert job["environment"] == "production"
    undo = next(step for step in job["steps"] if "rollout undo" in step.get("run", ""))
    assert undo["if"].startswith("failure()")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_version_of_an_action_stands_beside_its_hash(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if "uses:" in line:
            assert re.search(r"@[0-9a-f]{40} # v\d+(\.\d+)*$", line)
