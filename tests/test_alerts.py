"""Each alert fires on its fault and clears after it, as Prometheus' own tool plays it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from k8s.render import HERE

RULES = yaml.safe_load((HERE / "components/monitoring/prometheusrule.yaml").read_text(encoding="utf-8"))["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
IN_POD = 'namespace="n",pod="p"'
FAULT_MINUTES = 720

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's prometheus, is absent")


def counter(name: str, labels: str, per_minute: int, *, stops: bool) -> dict[str, str]:
    """A series that grows all day, or only while the fault lasts."""
    end = per_minute * FAULT_MINUTES
    after = f"{end}x{FAULT_MINUTES}" if stops else f"{end}+{per_minute}x{FAULT_MINUTES}"
    return {"series": f"{name}{{{IN_POD},{labels}}}", "values": f"0+{per_minute}x{FAULT_MINUTES} {after}"}


def gauge(name: str, labels: str, during: str, after: str) -> dict[str, str]:
    return {
        "series": f"{name}{{{IN_POD}{labels}}}",
        "values": f"{during}x{FAULT_MINUTES} {after}x{FAULT_MINUTES}",
    }


MODEL = gauge("chestct_model_info", ',model="chestct:a"', "1+0", "1+0")
FAILING = [
    MODEL,
    counter("chestct_requests_total", 'code="200"', 900, stops=False),
    counter("chestct_requests_total", 'code="500"', 50, stops=True),
    counter("chestct_requests_total", 'code="UNAVAILABLE"', 50, stops=True),
]
SLOW = [
    MODEL,
    counter("chestct_request_seconds_count", 'protocol="http"', 1000, stops=False),
    counter("chestct_request_seconds_bucket", 'protocol="http",le="1.0"', 800, stops=False),
    # after the fault the slow fifth is fast
    {
        "series": f'chestct_request_seconds_bucket{{{IN_POD},protocol="grpc",le="1.0"}}',
        "values": f"0x{FAULT_MINUTES} 0+200x{FAULT_MINUTES}",
    },
]
FAULTS: dict[str, list[dict[str, str]]] = {
    **dict.fromkeys(("ChestctFailingFast", "ChestctFailingSteadily", "ChestctFailingOverDays"), FAILING),
    **dict.fromkeys(("ChestctSlowFast", "ChestctSlowSteadily", "ChestctSlowOverDays"), SLOW),
    "ChestctAbsent": [gauge("chestct_model_info", ',model="chestct:a"', "_", "1+0")],
    "ChestctQueueFull": [MODEL, gauge("chestct_queue_depth", "", "300+0", "3+0")],
    "ChestctTwoModels": [MODEL, gauge("chestct_model_info", ',model="chestct:b"', "1+0", "stale _")],
    "ChestctRejecting": [
        MODEL,
        counter("chestct_predictions_total", 'decision="accept"', 60, stops=False),
        counter("chestct_predictions_total", 'decision="reject"', 40, stops=True),
    ],
}


def play(name: str, folder: Path, moments: dict[int, bool]) -> subprocess.CompletedProcess[str]:
    """promtool's verdict on whether the alert fires at these minutes of its fault."""
    query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
    expected = [
        {"expr": query, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": int(fires)}]}
        for minute, fires in moments.items()
    ]
    test = {"interval": "1m", "input_series": FAULTS[name], "promql_expr_test": expected}
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": [test]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES), encoding="utf-8")
    (folder / "test.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["promtool", "test", "rules", "test.yaml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_every_alert_has_a_fault_that_it_is_for() -> None:
    assert FAULTS.keys() == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_on_its_fault_and_clears_after_it(name: str, tmp_path: Path) -> None:
    done = play(name, tmp_path, {FAULT_MINUTES - 5: True, 2 * FAULT_MINUTES - 5: False})
    assert done.returncode == 0, done.stdout + done.stderr
