"""compose.yaml: its parts fit each other, and Prometheus takes its configuration and the cluster's rules."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_it_holds_the_service_its_monitoring_and_mlflow_on_this_machine_alone() -> None:
    assert set(SERVICES) == {"chestct", "prometheus", "grafana", "mlflow"}
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_every_image_is_pinned_and_mlflow_is_the_one_that_records() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("chestct") == "chestct:latest"  # as `make image` calls it
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image) for image in images.values())
    pins = (ROOT / "requirements" / "training.txt").read_text(encoding="utf-8")
    assert f"\nmlflow=={images['mlflow'].partition(':v')[2]} " in pins


def test_mlflow_does_not_report_its_use_wherever_it_is_started() -> None:
    assert SERVICES["mlflow"]["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nmlflow: ")[2].partition("\n\n")[0]
    assert recipe.index("MLFLOW_DISABLE_TELEMETRY=true") < recipe.index("mlflow ui")


def test_every_file_and_configuration_that_is_mounted_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
        for config in service.get("configs", []):
            assert yaml.safe_load(COMPOSE["configs"][config["source"]]["content"])


def test_the_dashboard_finds_the_labels_that_prometheus_gives() -> None:
    scraped = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])["scrape_configs"][0]["static_configs"][0]
    assert scraped["targets"] == ["chestct:3000"]
    dashboard = json.loads((ROOT / "k8s/components/monitoring/dashboard.json").read_text(encoding="utf-8"))
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    assert variables - {"datasource"} <= set(scraped["labels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (Debian: apt-get install prometheus)")
def test_prometheus_takes_its_configuration_and_the_rules_of_the_cluster(tmp_path: Path) -> None:
    (command,) = SERVICES["prometheus"]["command"]
    take = command.partition(" &&")[0].replace("$$", "$")
    take = take.replace("/rules.yaml > /prometheus/rules.yaml", f"{ROOT}/k8s/components/monitoring/prometheusrule.yaml")
    rules = tmp_path / "rules.yaml"
    rules.write_text(subprocess.run(["sh", "-c", take], check=True, capture_output=True, text=True).stdout)
    config = tmp_path / "prometheus.yaml"
    config.write_text(COMPOSE["configs"]["prometheus"]["content"].replace("/prometheus/rules.yaml", str(rules)))

    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    found = re.search(r"SUCCESS: (\d+) rules found", done.stdout)
    assert found is not None
    assert int(found[1]) > 10
