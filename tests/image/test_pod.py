"""How a container runs is what production's manifests say."""

from pathlib import Path

import pytest
import yaml

from image.pod import Pod, Probe, pod, run_options
from tests.server import ROOT


def test_a_pod_is_read_from_productions_manifests() -> None:
    found = pod()
    manifest = yaml.safe_load((ROOT / "k8s/base/deployment.yaml").read_text(encoding="utf-8"))["spec"]["template"][
        "spec"
    ]
    assert found.grace_seconds == manifest["terminationGracePeriodSeconds"]
    assert found.pause_seconds == manifest["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert found.container["image"].startswith("ghcr.io/")
    assert found.settings["CHESTCT_WORKERS"] == "2"
    liveness = manifest["containers"][0]["livenessProbe"]
    numbers = [liveness[name] for name in ("periodSeconds", "timeoutSeconds", "failureThreshold")]
    assert found.probe("livenessProbe") == Probe(*numbers)


@pytest.mark.parametrize("given", [{}, {"timeoutSeconds": 1, "periodSeconds": 10, "failureThreshold": 3}])
def test_what_a_probe_leaves_out_has_kubernetes_value(given: dict[str, int]) -> None:
    assert Pod({"containers": [{"readinessProbe": given}]}, {}).probe("readinessProbe") == Probe(10, 1, 3)


def test_a_container_gets_the_pods_rights_limits_volumes_and_environment(tmp_path: Path) -> None:
    options = run_options(pod(), tmp_path)
    line = " ".join(options)
    assert line.startswith("--user 10001:10001 --cpus 2 --memory ")
    assert "--read-only --security-opt no-new-privileges --cap-drop=all" in line
    assert f"--volume {tmp_path}/bentoml:/var/lib/bentoml" in line
    assert {"--env", "BENTOML_HOME=/var/lib/bentoml", "CHESTCT_METRICS=private"} <= set(options)
    assert (tmp_path / "tmp").stat().st_mode & 0o777 == 0o777


def test_a_secret_of_a_component_is_mounted_read_only_and_named_in_the_environment(tmp_path: Path) -> None:
    options = run_options(pod("api-keys"), tmp_path)
    assert f"{tmp_path}/chestct-keys:/etc/chestct/keys:ro" in options
    assert "CHESTCT_API_KEYS_FILE=/etc/chestct/keys/keys" in options
