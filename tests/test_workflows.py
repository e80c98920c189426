"""The workflows run commands that also run here, and a few commands of cluster, registry and system."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
# Commands for a cluster, a registry, the repository's host and the system, and for the file with a cluster's address.
# DVC compares the figures for a proposal.
ELSEWHERE = {
    ".venv/bin/dvc",
    "cosign",
    "docker",
    "echo",
    "gh",
    "git",
    "install",
    "kind",
    "kubectl",
    "kustomize",
    "sudo",
}
# Programs of .ci/run that the runner has.
ON_THE_RUNNER = {"binutils", "make", "chromium"}
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
    assert [path.stem for path in WORKFLOWS] == ["e2e", "hold", "model", "release", "test"]


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


def test_the_tests_have_the_programs_that_they_would_be_skipped_without() -> None:
    wanted = set(re.findall(r"missing\+=\((\S+)\)", (ROOT / ".ci/run").read_text(encoding="utf-8")))
    assert wanted > ON_THE_RUNNER
    runs = [step.get("run", "") for job in jobs(ROOT / ".github/workflows/test.yaml").values() for step in job["steps"]]
    installed = {word for run in runs if run.startswith("sudo apt-get -qq install") for word in run.split()[4:]}
    assert wanted - ON_THE_RUNNER <= installed


def test_a_change_of_what_makes_or_judges_the_images_is_tried_on_a_cluster() -> None:
    content = yaml.safe_load((ROOT / ".github/workflows/e2e.yaml").read_text(encoding="utf-8"))
    patterns = content[True]["pull_request"]["paths"]  # YAML 1.1 reads `on` as true
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))["include"]
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "image/Containerfile").read_text("utf-8"), re.MULTILINE)
    others = ["Makefile", "bentofile.yaml", "image/Containerfile", "release/card.json", "tests/container/__init__.py"]
    sources = [source.removeprefix("/") for source in (*bento, *copied, *others)]
    assert {"service.py", "serving/**/*.py", "requirements/load.txt", "load_tests"} <= set(sources)
    # a pattern that covers the files of a folder covers the folder
    assert [name for name in sources if not any(fnmatch(name, it) or fnmatch(f"{name}/", it) for it in patterns)] == []


def test_production_waits_for_a_person() -> None:
    job = jobs(ROOT / ".github/workflows/release.yaml")["production"]
    assert job["environment"] == "production"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_version_of_an_action_is_beside_its_hash(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if "uses:" in line:
            assert re.search(r"@[0-9a-f]{40} # v\d+(\.\d+)*$", line)
