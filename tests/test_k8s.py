"""The manifests, in every overlay with every component, as kubectl renders them."""

import ast
import json
import re
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

import chestct
from chestct import reader_child
from chestct.encoded_image import CHEAP_MEMORY, MAX_MEMORY
from k8s.render import COMBINATIONS, COMPONENTS, HERE, render
from serving.settings import PREFIX, Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import CLIENT_LATE

MONITORING = HERE / "components/monitoring"
POD_KINDS = ("Deployment", "Job")
PROBES = 'route!~"/livez|/readyz|/healthz|/metrics"'
METRICS = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]

Objects = list[dict[str, Any]]


@cache
def rendered(overlay: str, components: tuple[str, ...] = ()) -> Objects:
    return list(yaml.safe_load_all(render(overlay, components)))


@pytest.fixture(params=COMBINATIONS, ids=lambda value: "-".join((value[0], *value[1])))
def objects(request: pytest.FixtureRequest) -> Objects:
    return rendered(*request.param)


def find(objects: Objects, kind: str, prefix: str = "chestct") -> dict[str, Any]:
    (only,) = [item for item in objects if item["kind"] == kind and re.fullmatch(prefix, item["metadata"]["name"])]
    return only


def pod(objects: Objects) -> dict[str, Any]:
    return find(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects: Objects) -> dict[str, Any]:
    (only,) = pod(objects)["containers"]
    return only


def settings(objects: Objects) -> dict[str, str]:
    return find(objects, "ConfigMap", "chestct-[0-9a-z]{10}")["data"]


def read_settings(objects: Objects) -> Settings:
    return Settings.model_validate(
        {name.removeprefix(PREFIX).lower(): value for name, value in settings(objects).items()}
    )


def ports(objects: Objects) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(objects)["ports"]}


def autoscaler(objects: Objects) -> tuple[int, int]:
    """Return the fewest and the most pods of the autoscaler or the ScaledObject."""
    for item in objects:
        if item["kind"] == "HorizontalPodAutoscaler":
            return item["spec"]["minReplicas"], item["spec"]["maxReplicas"]
        if item["kind"] == "ScaledObject":
            return item["spec"]["minReplicaCount"], item["spec"]["maxReplicaCount"]
    raise AssertionError("nothing scales")


def queries() -> dict[str, str]:
    """Return each PromQL expression of rules, dashboard, autoscaler and analysis, by its place."""
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    found |= {
        item["name"]: item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"
    }
    objects = rendered("production", tuple(COMPONENTS))
    for trigger in find(objects, "ScaledObject")["spec"]["triggers"]:
        if trigger["type"] == "prometheus":
            found["ScaledObject"] = trigger["metadata"]["query"]
    for metric in find(objects, "AnalysisTemplate")["spec"]["metrics"]:
        found[f"analysis {metric['name']}"] = metric["provider"]["prometheus"]["query"]
    return found


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text(encoding="utf-8"))
    return [rule for group in content["spec"]["groups"] for rule in group["rules"]]


def exposed() -> set[str]:
    """Return the names of all series of serving.telemetry.metrics."""
    names = set()
    for metric in METRICS:
        for family in metric.describe():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
    return names


def labels_of(name: str) -> set[str]:
    """Return the labels of a series: its own and those that Prometheus adds in a cluster."""
    for metric in METRICS:
        if any(family.name == re.sub(r"_(total|bucket|sum|count)$", "", name) for family in metric.describe()):
            return {*metric._labelnames, "namespace", "pod", *(["le"] if name.endswith("_bucket") else [])}
    raise AssertionError(name)


def test_a_manifest_is_named_after_the_one_kind_it_holds() -> None:
    for path in [*HERE.glob("base/*.yaml"), *HERE.glob("overlays/*/*.yaml"), *HERE.glob("components/*/*.yaml")]:
        (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        kind = {"Component": "kustomization"}.get(document["kind"], document["kind"].lower())
        assert path.stem == kind, path


@pytest.mark.parametrize("folder", ["base", *(f"components/{name}" for name in COMPONENTS)])
def test_every_file_of_base_and_components_is_used(folder: str) -> None:
    content = yaml.safe_load((HERE / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    generated = [name for item in content.get("configMapGenerator", []) for name in item.get("files", [])]
    files = {path.name for path in (HERE / folder).iterdir()} - {"kustomization.yaml"}
    assert files == {*content["resources"], *generated}


def test_an_overlay_says_little() -> None:
    for path in HERE.glob("overlays/*/kustomization.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 20


def test_all_objects_are_in_the_overlays_namespace(objects: Objects) -> None:
    namespace = find(objects, "Namespace", ".*")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"} == {namespace["name"]}


def test_the_ports_are_those_the_service_listens_on(objects: Objects) -> None:
    fields = Settings.model_fields
    own = {"grpc": fields["grpc_port"].default, "private": fields["private_port"].default}
    assert ports(objects) == {"http": 3000, **own}
    entries = {port["name"]: port for port in find(objects, "Service")["spec"]["ports"]}
    assert {name: port["targetPort"] for name, port in entries.items()} == {"http": "http", "grpc": "grpc"}
    assert {name: port["appProtocol"] for name, port in entries.items()} == {
        "http": "http",
        "grpc": "kubernetes.io/h2c",
    }


def test_the_probes_ask_where_the_container_listens(objects: Objects) -> None:
    paths = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(objects)[name]
        if "grpc" in probe:
            assert probe["grpc"]["port"] == ports(objects)["grpc"]
        else:
            assert probe["httpGet"]["port"] == "http"
            paths[name] = probe["httpGet"]["path"]
    assert paths == {"startupProbe": "/readyz", "livenessProbe": "/livez"}


def test_every_port_that_is_named_exists(objects: Objects) -> None:
    named = set()
    for item in objects:
        if item["kind"] == "PodMonitor":
            named |= {endpoint["port"] for endpoint in item["spec"]["podMetricsEndpoints"]}
        if item["kind"] == "NetworkPolicy":
            sides = [*item["spec"].get("ingress", []), *item["spec"].get("egress", [])]
            named |= {port["port"] for side in sides for port in side.get("ports", []) if port["port"] != 53}
    assert named <= set(ports(objects))
    routes = [item for item in objects if item["kind"] in ("HTTPRoute", "GRPCRoute")]
    wanted = {
        (ref["name"], ref["port"]) for item in routes for rule in item["spec"]["rules"] for ref in rule["backendRefs"]
    }
    service = find(objects, "Service")
    assert wanted <= {(service["metadata"]["name"], port["port"]) for port in service["spec"]["ports"]}


def test_every_selector_takes_the_deployments_pods(objects: Objects) -> None:
    labels = find(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    (spread,) = pod(objects)["topologySpreadConstraints"]
    selectors = [
        find(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        find(objects, "Service")["spec"]["selector"],
        find(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        *(item["spec"]["selector"]["matchLabels"] for item in objects if item["kind"] == "PodMonitor"),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_the_service_does_not_send_to_the_load_test() -> None:
    objects = rendered("dev", ("load-test",))
    labels = find(objects, "Job", "chestct-load-test")["spec"]["template"]["metadata"]["labels"]
    policy = find(objects, "NetworkPolicy", "chestct-load-test")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= labels.items()
    assert not find(objects, "Service")["spec"]["selector"].items() <= labels.items()


def test_the_autoscaler_owns_the_replicas(objects: Objects) -> None:
    deployment = find(objects, "Deployment")
    assert "cpu" in container(objects)["resources"]["requests"]  # utilisation is a share of the request
    scalers = [item for item in objects if item["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert len(scalers) == 1
    target = scalers[0]["spec"]["scaleTargetRef"]
    rollouts = [item for item in objects if item["kind"] == "Rollout"]
    assert not [item["kind"] for item in (deployment, *rollouts) if "replicas" in item["spec"]]
    if rollouts:
        assert (target["kind"], target["name"]) == ("Rollout", rollouts[0]["metadata"]["name"])
        workload = rollouts[0]["spec"]["workloadRef"]
        assert (workload["kind"], workload["name"]) == ("Deployment", deployment["metadata"]["name"])
        assert workload["scaleDown"] == "onsuccess"  # not before other pods are ready
    else:
        assert (target.get("kind", "Deployment"), target["name"]) == ("Deployment", deployment["metadata"]["name"])


def test_an_overlays_bounds_hold_for_every_autoscaler(objects: Objects) -> None:
    bounds = {"chestct-dev": (1, 10), "chestct-staging": (2, 3), "chestct": (2, 10)}
    assert autoscaler(objects) == bounds[find(objects, "Namespace", ".*")["metadata"]["name"]]


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_an_overlay_names_the_tag_that_the_release_workflow_pushes(overlay: str) -> None:
    workflow = yaml.safe_load((HERE.parent / ".github/workflows/release.yaml").read_text(encoding="utf-8"))
    (tags,) = workflow[True]["push"]["tags"]  # YAML 1.1 reads `on` as true
    _, _, tag = container(rendered(overlay))["image"].partition(":")
    assert tag == f"v{chestct.__version__}"
    assert fnmatch(tag, tags)


def test_a_drain_of_a_node_can_always_go_on(objects: Objects) -> None:
    budget = find(objects, "PodDisruptionBudget")["spec"]
    least, _ = autoscaler(objects)
    assert budget["maxUnavailable"] >= 1
    assert least == 1 or budget["maxUnavailable"] < least  # with two pods or more, one stays


def test_a_rollout_never_has_fewer_pods_than_before(objects: Objects) -> None:
    assert find(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_environment_names_settings_that_exist(objects: Objects) -> None:
    name = find(objects, "ConfigMap", "chestct-[0-9a-z]{10}")["metadata"]["name"]
    assert container(objects)["envFrom"] == [{"configMapRef": {"name": name}}]
    assert set(settings(objects)) <= {PREFIX + field.upper() for field in Settings.model_fields}
    read_settings(objects)


def test_metrics_are_shown_on_the_port_that_is_collected(objects: Objects) -> None:
    assert settings(objects)["CHESTCT_METRICS"] == "private"
    for item in objects:
        if item["kind"] == "PodMonitor":
            (endpoint,) = item["spec"]["podMetricsEndpoints"]
            assert (endpoint["port"], endpoint["path"]) == ("private", "/metrics")


def test_a_changed_setting_gives_the_configmap_a_new_name(tmp_path: Path) -> None:
    shutil.copytree(HERE, tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "k8s/base/kustomization.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("CHESTCT_WORKERS=2", "CHESTCT_WORKERS=3"), "utf-8")
    changed = list(yaml.safe_load_all(render("dev", source=tmp_path / "k8s")))
    names = [find(items, "ConfigMap", "chestct-[0-9a-z]{10}") for items in (changed, rendered("dev"))]
    assert names[0]["metadata"]["name"] != names[1]["metadata"]["name"]


def test_every_pod_meets_pod_security_restricted(objects: Objects) -> None:
    specs = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in POD_KINDS]
    for spec in specs:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all(set(volume) <= {"name", "emptyDir"} for volume in spec["volumes"])
        assert spec["automountServiceAccountToken"] is False
        for inside in spec["containers"]:
            assert inside["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= inside["resources"].keys()
    assert find(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod(objects)["serviceAccountName"] == find(objects, "ServiceAccount")["metadata"]["name"]


def test_the_image_runs_as_the_pods_user_and_writes_to_its_volumes(objects: Objects) -> None:
    image = (HERE.parent / "image/Containerfile").read_text(encoding="utf-8")
    user = pod(objects)["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in image
    home = next(item["value"] for item in container(objects)["env"] if item["name"] == "BENTOML_HOME")
    assert f"BENTOML_HOME={home} " in image
    mounts = {mount["mountPath"]: mount["name"] for mount in container(objects)["volumeMounts"]}
    assert mounts[home] in {volume["name"] for volume in pod(objects)["volumes"]}


def test_the_grace_period_holds_the_pause_the_drain_and_the_slowest_request(objects: Objects) -> None:
    pause = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    read = read_settings(objects)
    assert pod(objects)["terminationGracePeriodSeconds"] > pause + read.drain_seconds + read.request_timeout


def test_the_memory_limit_holds_the_worst_of_every_part_at_once(objects: Objects) -> None:
    page = (HERE.parent / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    table = page.partition("## Memory of a pod")[2].partition("\n\nWith two workers")[0]
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| (.+?) \|", table, re.MULTILINE)
    supervisor, worker, bodies, json_, picture, guarded = (int(figure) * 2**20 for figure, _ in rows)
    read = read_settings(objects)
    assert (bodies, picture, guarded) == (read.max_bytes_in_flight, CHEAP_MEMORY, reader_child.MEMORY_LIMIT)
    assert guarded >= MAX_MEMORY + 2 * read.max_body_bytes + 128 * 2**20  # and what it holds itself, or kept

    resources = container(objects)["resources"]
    threads = -(-int(resources["limits"]["cpu"]) // read.workers)  # as the settings have it by default
    assert "decode_threads" not in read.model_fields_set
    needed = supervisor + read.workers * (worker + bodies + json_ + threads * picture + guarded)
    limit = resources["limits"]["memory"]
    assert f"that is {needed // 2**20} MiB" in page
    assert int(limit.removesuffix("Mi")) * 2**20 >= needed
    assert resources["requests"]["memory"] == limit


@pytest.mark.parametrize("where", queries())
def test_a_query_names_metrics_and_labels_that_exist(where: str) -> None:
    query = queries()[where]
    bare = re.sub(r'"[^"]*"', '""', query)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"chestct:[\w:]+", bare)) <= recorded
    names = set(re.findall(r"(?<![\w:])chestct_\w+", bare))
    assert names <= exposed()
    allowed = {label for name in names for label in labels_of(name)} | {"namespace"}
    used = {word for words in re.findall(r"by \(([^)]*)\)", bare) for word in re.split(r",\s*", words)}
    used |= {label for inside in re.findall(r"\{([^}]*)\}", bare) for label in re.findall(r"(\w+)\s*[=!]", inside)}
    assert used <= allowed


def test_scaling_and_analysis_look_at_their_own_namespace(objects: Objects) -> None:
    asked = []
    for item in objects:
        if item["kind"] == "ScaledObject":
            triggers = item["spec"]["triggers"]
            asked += [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]
        if item["kind"] == "AnalysisTemplate":
            asked += [metric["provider"]["prometheus"]["query"] for metric in item["spec"]["metrics"]]
            given = find(objects, "Rollout")["spec"]["strategy"]["canary"]["analysis"]["args"]
            assert {"name": "namespace", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}} in given
            assert {argument["name"] for argument in item["spec"]["args"]} == {argument["name"] for argument in given}
    own = find(objects, "Namespace", ".*")["metadata"]["name"]
    for query in asked:
        filled = query.replace("{{args.namespace}}", own)
        assert filled.count(f'{{namespace="{own}"') == len(re.findall(r"chestct_\w+", filled))


def test_no_promise_counts_probes_and_scrapes() -> None:
    for where, query in queries().items():
        if where != "Requests a second A":
            assert query.count(PROBES) == len(re.findall(r"chestct_request(?:s|_seconds)_\w+", query)), where


def test_the_code_that_counts_as_failed_is_one_that_the_service_gives() -> None:
    (expression,) = {rule["expr"] for rule in rules() if rule.get("record") == "chestct:failed:share5m"}
    statuses = set(re.findall(r"[A-Z_]{4,}", expression))
    sources = [ast.parse(file.read_text(encoding="utf-8")) for file in (HERE.parent / "serving/rpc").glob("*.py")]
    given = {node.attr for source in sources for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    assert {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"} <= statuses & given


def test_a_client_s_own_deadline_is_outside_the_promise_of_answers() -> None:
    failing = {where: query for where, query in queries().items() if "INTERNAL" in query}
    assert len(failing) == 6
    for where, query in failing.items():
        failed, asked = query.split(" / ")
        codes = re.search(r'code=~"([^"]*)"', failed)
        assert codes, where
        assert not re.fullmatch(codes[1], CLIENT_LATE), where
        assert f'code!="{CLIENT_LATE}"' in asked, where


def test_a_skip_of_checkov_has_its_reason() -> None:
    lines = (HERE / "checkov.yaml").read_text(encoding="utf-8").splitlines()
    skips = [number for number, line in enumerate(lines) if line.strip().startswith("- CKV")]
    assert skips
    assert all(lines[number - 1].strip().startswith("# ") for number in skips)
