"""Runs the steps of the workflows with cluster, registry and make replaced by recorders, and checks each call."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from load_tests import check
from tests.server import ROOT
from tests.workflow_runner import Answer, Call, Outcome, Runner

E2E = ROOT / ".github/workflows/e2e.yaml"
RELEASE = ROOT / ".github/workflows/release.yaml"
PROGRAMS = ["cosign", "docker", "gh", "install", "kind", "kubectl", "kustomize", "make"]
DIGEST = "sha256:" + "5eed" * 16
CHECKOUT = "uses actions/checkout persist-credentials=False"
STATUS = "kubectl --namespace chestct rollout status deployment/chestct --timeout 15m"
BEFORE = "release=v1.1.0\nimage=ghcr.io/owner/chestct@sha256:0ld\n"
READ = "kubectl --namespace chestct get deployment/chestct"
LOOK = [
    "kubectl --namespace chestct describe pods --selector app.kubernetes.io/name=chestct",
    "kubectl --namespace chestct logs --selector app.kubernetes.io/name=chestct --all-containers --prefix --tail 100",
    "kubectl --namespace chestct get events --sort-by lastTimestamp",
]
UNDO = [
    "uses actions/checkout ref=v1.1.0 path=before persist-credentials=False",
    "kustomize edit set image chestct=ghcr.io/owner/chestct@sha256:0ld",
    "kustomize edit add annotation chestct/release:v1.1.0",
    "kubectl apply -k before/k8s/overlays/production",
    STATUS,
]
KIND_CPU = 0.95
"""Cores that kind's own pods request: API server 0.25, controller manager and CoreDNS 0.2 each, others 0.1 each."""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    github = SimpleNamespace(repository="Owner/Chestct", ref_name="v1.2.0", ref="refs/tags/v1.2.0")
    secrets = SimpleNamespace(GITHUB_TOKEN="t0ken", KUBECONFIG="clusters: []")
    return Runner(tmp_path, PROGRAMS, {"github": github, "secrets": secrets})


def lines(outcome: Outcome) -> list[str]:
    return [call.line for call in outcome.calls]


def production(runner: Runner, *answers: Answer) -> Outcome:
    needs = SimpleNamespace(publish=SimpleNamespace(outputs=SimpleNamespace(digest=DIGEST)))
    return runner.run(RELEASE, "production", answers, needs=needs)


def rolled_out(outcome: Outcome) -> list[str]:
    """Return the calls up to the status of the rollout, without the one that reads what runs."""
    return [line for line in lines(outcome)[:7] if not line.startswith(READ)]


ROLL_OUT = [
    CHECKOUT,
    "install -m 600 /dev/stdin /home/runner/kubeconfig",
    f"kustomize edit set image chestct=ghcr.io/owner/chestct@{DIGEST}",
    "kustomize edit add annotation chestct/release:v1.2.0",
    "kubectl apply -k k8s/overlays/production",
    STATUS,
]


def test_a_rolling_update_is_tried_on_a_cluster(runner: Runner) -> None:
    outcome = runner.run(E2E, "kind")
    assert lines(outcome) == [
        CHECKOUT,
        "uses actions/setup-python python-version=3.11",
        "kind create cluster --wait 3m",
        "kubectl config set-context --current --namespace chestct-dev",
        "make image IMAGE=chestct:dev",
        "make test-image IMAGE=chestct:dev",
        "make image IMAGE=chestct-load:0.2.0 CONTAINER_OPTIONS=--target load",
        "docker save --output build/images.tar chestct:dev chestct-load:0.2.0",
        "kind load image-archive build/images.tar",
        "kubectl apply -k k8s/admin/dev",
        "kubectl apply -k .github/e2e/service",
        "kubectl rollout status deployment/chestct --timeout 5m",
        "kubectl apply -k .github/e2e/load",
        "kubectl wait job/chestct-load-test --for jsonpath={.status.ready}=1 --timeout 3m",
        "kubectl rollout restart deployment/chestct",
        "kubectl rollout status deployment/chestct --timeout 5m",
        "kubectl wait job/chestct-load-test --for jsonpath={.status.conditions} --timeout 8m",
        "kubectl wait job/chestct-load-test --for condition=Complete --timeout 15s",
        "kubectl logs job/chestct-load-test --tail 60",
    ]
    assert outcome.succeeded


@pytest.mark.parametrize("broken", ["kubectl rollout status", "kubectl wait job/chestct-load-test --for condition"])
def test_a_cluster_that_fails_shows_logs_pods_and_events(runner: Runner, broken: str) -> None:
    outcome = runner.run(E2E, "kind", [Answer(broken, 1)])
    assert lines(outcome)[-5].startswith(broken)
    assert lines(outcome)[-4:] == [
        "kubectl logs job/chestct-load-test --tail 60",
        "kubectl logs --selector app.kubernetes.io/name=chestct --all-containers --prefix --tail 200",
        "kubectl describe nodes,jobs,pods",
        "kubectl get events --sort-by lastTimestamp",
    ]
    assert not outcome.succeeded


def test_the_images_that_are_loaded_are_those_that_are_built_and_run(runner: Runner) -> None:
    (saved,) = (call for call in runner.run(E2E, "kind").calls if call.words[:2] == ["docker", "save"])
    objects = rendered("load")
    used = {
        inside["image"]
        for item in objects
        if item["kind"] in ("Deployment", "Job")
        for inside in item["spec"]["template"]["spec"]["containers"]
    }
    assert set(saved.words[4:]) == used


def test_the_pods_of_a_rolling_update_fit_a_runner_with_two_cores() -> None:
    wanted = {}
    for item in rendered("load"):
        if item["kind"] in ("Deployment", "Job"):
            (inside,) = item["spec"]["template"]["spec"]["containers"]
            wanted[item["kind"]] = cores(inside["resources"]["requests"]["cpu"])
    assert KIND_CPU + 2 * wanted["Deployment"] + wanted["Job"] <= 2


def test_the_load_has_bounds_for_a_shared_runner_and_outlasts_the_update() -> None:
    (job,) = (item for item in rendered("load") if item["kind"] == "Job")
    (inside,) = job["spec"]["template"]["spec"]["containers"]
    arguments = dict(word.removeprefix("--").split("=", 1) for word in inside["args"])
    assert int(arguments["seconds"]) < job["spec"]["activeDeadlineSeconds"]
    patient = check.read_objectives(ROOT / arguments["slo"], arguments["scenario"]).rows
    strict = check.read_objectives(ROOT / "load_tests/slo.yaml", arguments["scenario"]).rows
    assert patient.keys() == strict.keys()
    for name, bound in patient.items():
        assert bound.max_error_rate == 0
        assert bound.max_p99_ms > strict[name].max_p99_ms


def test_a_release_is_built_pushed_and_tested_for_each_architecture(runner: Runner) -> None:
    outcome = runner.run(RELEASE, "build", matrix=SimpleNamespace(architecture="arm64", runner="ubuntu-24.04-arm"))
    image = "ghcr.io/owner/chestct:v1.2.0-arm64"
    calls = [call for call in outcome.calls if call.words[0] != "uses"]
    assert [call.line for call in calls] == [
        f"make image IMAGE={image} SOURCE=https://github.com/Owner/Chestct",
        f"make test-image IMAGE={image}",
        "make package",
        "docker login ghcr.io --username owner --password-stdin",
        f"docker push {image}",
    ]
    assert calls[3].stdin == "t0ken\n"


def test_a_release_is_joined_signed_and_attested_by_its_digest(runner: Runner) -> None:
    inspected = Answer("docker buildx imagetools inspect", output=f"digest={DIGEST}\n")
    outcome = runner.run(RELEASE, "publish", [inspected])
    image = "ghcr.io/owner/chestct"
    assert [line for line in lines(outcome) if not line.startswith("uses")] == [
        "docker login ghcr.io --username owner --password-stdin",
        f"docker buildx imagetools create --tag {image}:v1.2.0 {image}:v1.2.0-amd64 {image}:v1.2.0-arm64",
        f"docker buildx imagetools inspect {image}:v1.2.0 --format digest={{{{.Manifest.Digest}}}}",
        f"cosign sign --yes --recursive {image}@{DIGEST}",
        f"cosign attest --yes --type cyclonedx --predicate amd64/image.cdx.json {image}:v1.2.0-amd64",
        f"cosign attest --yes --type cyclonedx --predicate arm64/image.cdx.json {image}:v1.2.0-arm64",
        "gh release create v1.2.0 --repo Owner/Chestct --verify-tag --generate-notes amd64/chestct.bento "
        "amd64/chestct-*.whl amd64/image.cdx.json#Bill of materials, amd64",
    ]


def test_a_release_is_rolled_out_by_its_digest(runner: Runner) -> None:
    outcome = production(runner, Answer(READ, output=BEFORE))
    assert rolled_out(outcome) == ROLL_OUT
    assert len(outcome.calls) == len(ROLL_OUT) + 1
    assert outcome.calls[1].stdin == "clusters: []\n"
    assert {call.folder for call in outcome.calls if call.words[0] == "kustomize"} == {"k8s/overlays/production"}
    assert outcome.succeeded


@pytest.mark.parametrize("broken", ["kubectl apply", STATUS])
def test_a_release_that_fails_is_undone_with_every_object_of_the_release_before(runner: Runner, broken: str) -> None:
    outcome = production(runner, Answer(READ, output=BEFORE), Answer(broken, 1))
    assert lines(outcome)[-8:] == [*LOOK, *UNDO]
    assert {call.folder for call in outcome.calls[-4:-2]} == {"before/k8s/overlays/production"}
    assert "nothing to undo" not in outcome.said
    assert not outcome.succeeded


@pytest.mark.parametrize("before", ["", "release=\nimage=ghcr.io/owner/chestct:old\n"])
def test_the_first_roll_out_says_that_there_is_nothing_to_undo(runner: Runner, before: str) -> None:
    outcome = production(runner, Answer(READ, output=before), Answer(STATUS, 1))
    assert rolled_out(outcome) == ROLL_OUT
    assert lines(outcome)[-3:] == LOOK
    assert outcome.said.startswith("::error title=Nothing was undone::")
    assert not outcome.succeeded


@pytest.mark.parametrize("broken", ["install", READ, "kustomize"])
def test_nothing_is_undone_if_nothing_was_applied(runner: Runner, broken: str) -> None:
    outcome = production(runner, Answer(READ, 1 if broken == READ else 0, BEFORE), Answer(broken, 1))
    assert lines(outcome)[-1].startswith(broken)
    assert not outcome.succeeded


def test_what_runs_before_a_release_is_read_from_the_cluster(runner: Runner, tmp_path: Path) -> None:
    """The query is kubectl's own on the manifests as a release before has applied them."""
    (call,) = (call for call in production(runner).calls if call.line.startswith(READ))
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    text = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s/overlays/production"], check=True, capture_output=True, text=True
    ).stdout
    (overlay / "all.yaml").write_text(text, encoding="utf-8")
    customization = {"resources": ["all.yaml"], "commonAnnotations": {"chestct/release": "v1.1.0"}}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(customization), encoding="utf-8")
    released = subprocess.run(["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True).stdout
    (deployment,) = (item for item in yaml.safe_load_all(released) if item["kind"] == "Deployment")
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(deployment), encoding="utf-8")
    query = ["kubectl", "annotate", "--local", "--filename", tmp_path / "deployment.yaml", "x=y", *call.words[-2:]]
    answer = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert answer == f"release=v1.1.0\nimage={image}\n"


def test_roll_out_and_undo_end_before_the_workflow_does(runner: Runner) -> None:
    outcome = production(runner, Answer(READ, output=BEFORE), Answer(STATUS, 1))
    waits = [int(minutes) for call in outcome.calls for minutes in re.findall(r"--timeout (\d+)m", call.line)]
    assert len(waits) == 2
    job = yaml.safe_load(RELEASE.read_text(encoding="utf-8"))["jobs"]["production"]
    assert sum(waits) < job["timeout-minutes"]
    text = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s/overlays/production"], check=True, capture_output=True, text=True
    ).stdout
    (deployment,) = (item for item in yaml.safe_load_all(text) if item["kind"] == "Deployment")
    assert deployment["spec"].get("progressDeadlineSeconds", 600) < 60 * min(waits)  # 600 is Kubernetes' default


def test_kubectl_knows_every_option(runner: Runner) -> None:
    outcomes = [
        runner.run(E2E, "kind", [Answer("kubectl wait", 1)]),
        production(runner, Answer(READ, output=BEFORE), Answer(STATUS, 1)),
    ]
    calls = {call.line: call for outcome in outcomes for call in outcome.calls if call.words[0] == "kubectl"}
    assert len(calls) > 10
    for call in calls.values():
        assert known(call), call.line


def test_kubectl_refuses_an_option_that_it_does_not_know() -> None:
    assert not known(Call(["kubectl", "get", "pods", "--wat"], ".", ""))


def known(call: Call) -> bool:
    """Whether kubectl can read the options. With --help it asks no cluster."""
    return subprocess.run([*call.words, "--help"], capture_output=True, check=False).returncode == 0


def rendered(name: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", ROOT / ".github/e2e" / name]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def cores(quantity: str) -> float:
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
