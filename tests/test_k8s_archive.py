"""The Job of k8s/components/archive runs the command of archive/, in the service's image."""

from typing import Any

import yaml

from archive import command, models
from k8s.render import HERE
from tests.manifests import container, find, pod, rendered

OBJECTS = rendered("production", ("archive",))
JOB = find(OBJECTS, "Job", "chestct-archive")["spec"]
POD = JOB["template"]["spec"]
(PLAN,) = POD["initContainers"]
(RUN,) = POD["containers"]


def options(part: dict[str, Any]) -> Any:
    arguments = [text.replace("$(JOB_COMPLETION_INDEX)", "7") for text in part["args"]]
    return command._parser().parse_args(arguments)


def test_the_command_knows_the_arguments_and_each_shard_is_one_completion() -> None:
    plan, run = options(PLAN), options(RUN)
    assert (plan.steps, plan.source, plan.place) == (["plan"], "/archive/in", "/archive/out")
    assert (run.steps, run.place, run.shard.number) == (["run"], plan.place, 7)
    assert run.shard.of == JOB["completions"] == 8
    assert JOB["completionMode"] == "Indexed"
    assert JOB["backoffLimitPerIndex"] > 0
    field = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    (index,) = (item for item in RUN["env"] if item["name"] == "JOB_COMPLETION_INDEX")
    assert index["valueFrom"]["fieldRef"]["fieldPath"] == field["fieldPath"]


def test_it_has_the_services_image_and_runs_the_code_in_its_bento() -> None:
    assert PLAN["image"] == RUN["image"] == container(OBJECTS)["image"]
    containerfile = (HERE.parent / "image" / "Containerfile").read_text(encoding="utf-8")
    for part in (PLAN, RUN):
        assert part["command"] == ["/app/.venv/bin/python", "-m", "archive"]
        assert part["workingDir"] == "/app/bento/src"  # models.find looks beside it
    assert "ADD build/chestct.bento /app/bento/" in containerfile
    assert HERE.parent == models.ROOT
    included = yaml.safe_load((HERE.parent / "bentofile.yaml").read_text(encoding="utf-8"))["include"]
    assert "archive/*.py" in included


def test_it_is_as_restricted_as_the_service_and_has_no_connections() -> None:
    assert POD["securityContext"] == pod(OBJECTS)["securityContext"]
    for part in (PLAN, RUN):
        assert part["securityContext"] == container(OBJECTS)["securityContext"]
    policy = find(OBJECTS, "NetworkPolicy", "chestct-archive")["spec"]
    labels = JOB["template"]["metadata"]["labels"]
    assert policy == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert not find(OBJECTS, "Service")["spec"]["selector"].items() <= labels.items()
