"""The examples for Argo CD, Flux and KServe run the same service as the overlays."""

import re
import subprocess
from functools import cache
from typing import Any

import yaml

import chestct
from k8s.render import ALL, HERE
from tests.api_server import RESOURCES
from tests.manifests import Objects, autoscaler, container, environment, find, namespace, pod, rendered, settings

EXAMPLES = HERE / "examples"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
PRODUCTION = rendered("production")


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((EXAMPLES / path).read_text(encoding="utf-8"))
    return content


@cache
def kserve() -> Objects:
    done = subprocess.run(["kubectl", "kustomize", EXAMPLES / "kserve"], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


def image_name() -> str:
    """Return the name by which production's kustomization replaces the image."""
    content = yaml.safe_load((HERE / "overlays/production/kustomization.yaml").read_text(encoding="utf-8"))
    (image,) = content["images"]
    return str(image["name"])


def test_argo_cd_applies_the_release_s_overlay_with_a_digest() -> None:
    spec = read("argo-cd/application.yaml")["spec"]
    source = spec["source"]
    assert (source["path"], source["targetRevision"]) == ("k8s/overlays/production", f"v{chestct.__version__}")
    (image,) = source["kustomize"]["images"]
    name, _, target = image.partition("=")
    assert name == image_name()
    assert DIGEST.fullmatch(target.partition("@")[2])
    assert spec["destination"]["namespace"] == namespace(PRODUCTION)
    # The overlay has no object outside of a namespace, so the project needs no rights on the cluster.
    assert all("namespace" in item["metadata"] for item in rendered("production", ALL))
    assert all(item["kind"] != "Namespace" and item["kind"] in RESOURCES[item["apiVersion"]] for item in PRODUCTION)


def test_flux_applies_the_release_s_overlay_with_a_digest_as_the_deployer() -> None:
    repository, flux = read("flux/gitrepository.yaml"), read("flux/kustomization-flux.yaml")
    assert repository["spec"]["ref"] == {"tag": f"v{chestct.__version__}"}
    spec = flux["spec"]
    assert spec["sourceRef"] == {"kind": repository["kind"], "name": repository["metadata"]["name"]}
    assert (HERE.parent / spec["path"] / "kustomization.yaml").is_file()
    (image,) = spec["images"]
    assert image["name"] == image_name()
    assert DIGEST.fullmatch(image["digest"])
    account = find(rendered("production", kind="admin"), "ServiceAccount", "deployer")["metadata"]
    assert (spec["serviceAccountName"], flux["metadata"]["namespace"]) == (account["name"], account["namespace"])
    assert spec["prune"] is False  # the account may delete only ConfigMaps and Jobs
    waits = int(spec["timeout"].removesuffix("m")) * 60
    assert waits > find(PRODUCTION, "Deployment")["spec"]["progressDeadlineSeconds"]


def test_kserve_runs_the_overlays_container() -> None:
    spec = find(kserve(), "ServingRuntime")["spec"]
    (inside,) = spec["containers"]
    usual = container(PRODUCTION)
    assert inside["name"] == "kserve-container"  # KServe looks for this name
    assert (inside["image"], inside["volumeMounts"]) == (usual["image"], usual["volumeMounts"])
    assert spec["volumes"] == pod(PRODUCTION)["volumes"]
    for kind in ("requests", "limits"):
        assert inside["resources"][kind].items() <= usual["resources"][kind].items()
    security = {**pod(PRODUCTION)["securityContext"], **usual["securityContext"]}
    del security["fsGroup"]  # of the pod, which KServe makes
    assert inside["securityContext"] == security
    named = {item["name"]: item["value"] for item in inside["env"]}
    assert named == {**settings(PRODUCTION), "BENTOML_HOME": environment(PRODUCTION)["BENTOML_HOME"]}


def test_kserve_asks_the_open_inference_protocol_of_the_model_that_is_in_the_image() -> None:
    runtime, service = (find(kserve(), kind) for kind in ("ServingRuntime", "InferenceService"))
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {item["name"] for item in runtime["spec"]["supportedModelFormats"]}
    assert "storageUri" not in model
    predictor = service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == autoscaler(PRODUCTION)
    (inside,) = runtime["spec"]["containers"]
    (port,) = inside["ports"]
    usual = container(PRODUCTION)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert inside[name]["httpGet"]["port"] == port["containerPort"] == 3000
        same = {key: value for key, value in usual[name].items() if key not in ("httpGet", "grpc")}
        assert same.items() <= inside[name].items()
    assert inside["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == "3002"
