"""The manifests, in every overlay with every component, as kubectl renders them."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import chestct
from chestct import reader_child
from chestct.encoded_image import CHEAP_MEMORY, MAX_MEMORY
from k8s.render import ADMIN_COMPONENTS, COMBINATIONS, COMPONENTS, HERE, OVERLAYS, render
from serving.settings import PREFIX, Settings
from tests.manifests import (
    Objects,
    autoscaler,
    container,
    environment,
    find,
    namespace,
    pod,
    ports,
    read_settings,
    rendered,
    settings,
)

POD_KINDS = ("Deployment", "Job", "StatefulSet")


@pytest.fixture(params=COMBINATIONS, ids=lambda value: "-".join((value[0], *value[1])))
def objects(request: pytest.FixtureRequest) -> Objects:
    return rendered(*request.param)


def test_a_manifest_is_named_after_the_one_kind_it_holds() -> None:
    folders = ("base", "admin/*", "overlays/*", "components/*", "examples/*")
    for path in [path for folder in folders for path in HERE.glob(f"{folder}/*.yaml")]:
        (document,) = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        kind = {"Component": "kustomization"}.get(document["kind"], document["kind"].lower())
        assert path.stem.partition("-")[0] == kind, path


@pytest.mark.parametrize("folder", ["base", *(f"components/{name}" for name in (*COMPONENTS, *ADMIN_COMPONENTS))])
def test_every_file_of_base_and_components_is_used(folder: str) -> None:
    content = yaml.safe_load((HERE / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    generated = [name for item in content.get("configMapGenerator", []) for name in item.get("files", [])]
    files = {path.name for path in (HERE / folder).iterdir()} - {"kustomization.yaml"}
    assert files == {*content.get("resources", []), *generated}


def test_an_overlay_says_little() -> None:
    for path in HERE.glob("overlays/*/kustomization.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 20


def test_all_objects_are_in_the_overlays_namespace_which_is_not_among_them(objects: Objects) -> None:
    assert "Namespace" not in {item["kind"] for item in objects}
    assert {item["metadata"].get("namespace") for item in objects} == {namespace(objects)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_admin_makes_the_overlays_namespace_and_the_account_that_deploys_into_it(overlay: str) -> None:
    objects = rendered(overlay, kind="admin")
    own = namespace(rendered(overlay))
    made = find(objects, "Namespace", own)["metadata"]
    assert made["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    account = find(objects, "ServiceAccount", "deployer")
    binding = find(objects, "RoleBinding", "deployer")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "deployer", "namespace": own}]
    assert binding["roleRef"]["name"] == find(objects, "Role", "deployer")["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert {item["metadata"].get("namespace", own) for item in objects} == {own}


def test_the_ports_are_those_the_service_listens_on(objects: Objects) -> None:
    fields = Settings.model_fields
    own = {"grpc": fields["grpc_port"].default, "private": fields["private_port"].default}
    assert ports(objects) == {"http": 3000, **own}
    entries = {port["name"]: port for port in find(objects, "Service")["spec"]["ports"]}
    assert {name: port["targetPort"] for name, port in entries.items()} == {"http": "http", "grpc": "grpc"}
    spoken = {name: port["appProtocol"] for name, port in entries.items() if "appProtocol" in port}
    with_tls = "CHESTCT_GRPC_CERTIFICATE" in environment(objects)
    assert spoken == {"http": "http"} | ({} if with_tls else {"grpc": "kubernetes.io/h2c"})


def test_a_grpc_client_that_balances_by_itself_finds_the_address_of_each_pod(objects: Objects) -> None:
    headless, usual = (find(objects, "Service", name)["spec"] for name in ("chestct-grpc", "chestct"))
    assert headless["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in headless  # only pods that are ready
    assert headless["ports"] == [port for port in usual["ports"] if port["name"] == "grpc"]
    # The name leads to pods without a Service's translation of ports, so the number must be the container's own.
    assert headless["ports"][0]["port"] == ports(objects)["grpc"]
    assert headless["selector"] == usual["selector"]


def test_the_probes_ask_where_the_container_listens(objects: Objects) -> None:
    paths = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container(objects)[name]
        if "grpc" in probe:
            assert probe["grpc"]["port"] == ports(objects)["grpc"]
        else:
            assert probe["httpGet"]["port"] == "http"
            paths[name] = probe["httpGet"]["path"]
    with_tls = "CHESTCT_GRPC_CERTIFICATE" in environment(objects)
    assert paths == {
        "startupProbe": "/readyz",
        "livenessProbe": "/livez",
        **({"readinessProbe": "/readyz"} if with_tls else {}),
    }


def test_a_slow_node_has_three_minutes_to_start_the_service(objects: Objects) -> None:
    probe = container(objects)["startupProbe"]
    assert (probe["initialDelaySeconds"], probe["timeoutSeconds"], probe["failureThreshold"]) == (3, 5, 90)
    allowed = probe["initialDelaySeconds"] + probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed >= 180
    spec = find(objects, "Deployment")["spec"]
    assert spec["progressDeadlineSeconds"] > allowed + spec["minReadySeconds"]


def test_the_release_workflow_waits_longer_than_a_stalled_rollout_takes_to_be_called_one() -> None:
    workflow = (HERE.parent / ".github/workflows/release.yaml").read_text(encoding="utf-8")
    waits = [int(minutes) * 60 for minutes in re.findall(r"rollout status .*--timeout (\d+)m", workflow)]
    assert waits
    assert find(rendered("production"), "Deployment")["spec"]["progressDeadlineSeconds"] < min(waits)


def test_a_new_pod_counts_only_after_a_worker_that_hangs_would_show(objects: Objects) -> None:
    assert find(objects, "Deployment")["spec"]["minReadySeconds"] > read_settings(objects).hang_seconds


def test_the_last_line_of_a_container_that_ends_is_kept(objects: Objects) -> None:
    assert container(objects)["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_release_is_spread_over_zones_and_nodes_by_itself(objects: Objects) -> None:
    spreads = pod(objects)["topologySpreadConstraints"]
    keys = [spread["topologyKey"] for spread in spreads]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for spread in spreads:
        assert spread["matchLabelKeys"] == ["pod-template-hash"]
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"  # one node, as on kind, is enough


def test_the_disk_that_a_container_may_use_holds_its_volumes_and_its_log(objects: Objects) -> None:
    folders = [volume["emptyDir"] for volume in pod(objects)["volumes"] if "emptyDir" in volume]
    sizes = [int(folder["sizeLimit"].removesuffix("Mi")) for folder in folders]
    resources = container(objects)["resources"]
    limit = int(resources["limits"]["ephemeral-storage"].removesuffix("Mi"))
    assert limit >= sum(sizes) + 5 * 10  # the kubelet keeps five files of 10 MiB of a container's log
    assert int(resources["requests"]["ephemeral-storage"].removesuffix("Mi")) <= limit


def test_every_port_that_is_named_exists(objects: Objects) -> None:
    named = set()
    for item in objects:
        if item["kind"] == "PodMonitor":
            named |= {endpoint["port"] for endpoint in item["spec"]["podMetricsEndpoints"]}
        if item["kind"] == "NetworkPolicy":
            sides = [*item["spec"].get("ingress", []), *item["spec"].get("egress", [])]
            named |= {port["port"] for side in sides for port in side.get("ports", []) if isinstance(port["port"], str)}
    specs = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in POD_KINDS]
    containers = [inside for spec in specs for inside in spec["containers"]]
    assert named <= {port["name"] for inside in containers for port in inside.get("ports", ())}
    routes = [item for item in objects if item["kind"] in ("HTTPRoute", "GRPCRoute")]
    wanted = {
        (ref["name"], ref["port"]) for item in routes for rule in item["spec"]["rules"] for ref in rule["backendRefs"]
    }
    service = find(objects, "Service")
    assert wanted <= {(service["metadata"]["name"], port["port"]) for port in service["spec"]["ports"]}


def test_every_selector_takes_the_deployments_pods(objects: Objects) -> None:
    labels = find(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        find(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        find(objects, "Service")["spec"]["selector"],
        find(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod(objects)["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_every_pod_monitor_takes_the_pods_of_its_name_alone(objects: Objects) -> None:
    labels = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in objects
        if item["kind"] in POD_KINDS
    }
    for monitor in (item for item in objects if item["kind"] == "PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        taken = {name for name, own in labels.items() if selector and selector <= own.items()}
        assert taken == {monitor["metadata"]["name"]}


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
    bounds = {"chestct-dev": (1, 2), "chestct-staging": (2, 3), "chestct": (2, 10)}
    least, most = bounds[namespace(objects)]
    to_zero = "InterceptorRoute" in {item["kind"] for item in objects}
    assert autoscaler(objects) == (0 if to_zero else least, most)


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
    assert least < 2 or budget["maxUnavailable"] < least  # with two pods or more, one stays


def test_a_rollout_never_has_fewer_pods_than_before(objects: Objects) -> None:
    assert find(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_environment_names_settings_that_exist(objects: Objects) -> None:
    name = find(objects, "ConfigMap", "chestct-[0-9a-z]{10}")["metadata"]["name"]
    sources = [source for source in container(objects)["envFrom"] if "secretRef" not in source]
    assert sources == [{"configMapRef": {"name": name}}]
    named = {*settings(objects), *(name for name in environment(objects) if name.startswith(PREFIX))}
    assert named <= {PREFIX + field.upper() for field in Settings.model_fields}
    read_settings(objects)


def test_metrics_are_shown_on_the_port_that_is_collected(objects: Objects) -> None:
    assert settings(objects)["CHESTCT_METRICS"] == "private"
    for item in objects:
        if item["kind"] == "PodMonitor":
            (endpoint,) = item["spec"]["podMetricsEndpoints"]
            port = {"chestct": "private", "chestct-dicom-node": "node-http"}[item["metadata"]["name"]]
            assert (endpoint["port"], endpoint["path"]) == (port, "/metrics")


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
        assert all(set(volume) <= {"name", "emptyDir", "secret", "persistentVolumeClaim"} for volume in spec["volumes"])
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
    home = environment(objects)["BENTOML_HOME"]
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


def test_a_skip_of_checkov_has_its_reason() -> None:
    lines = (HERE / "checkov.yaml").read_text(encoding="utf-8").splitlines()
    skips = [number for number, line in enumerate(lines) if line.strip().startswith("- CKV")]
    assert skips
    assert all(lines[number - 1].strip().startswith("# ") for number in skips)
