"""The canary's analysis, played by promtool on recorded metrics: a good release passes, and a worse one fails.

The two releases' pods have counters that grow by a fixed number a minute. promtool computes what each query gives, and
the test compares that with figures worked out by hand.
"""

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import find, rendered

TEMPLATE = find(rendered("production", ("canary",)), "AnalysisTemplate")["spec"]
METRICS: dict[str, dict[str, Any]] = {metric["name"]: metric for metric in TEMPLATE["metrics"]}
ARGUMENTS = {"canary": "new", "stable": "old", "namespace": "chestct"}
MINUTES = 30

Recorded = dict[str, int]
"""How much each series grows a minute, by its name and labels."""

PREDICT = 'route="/v1/predict"'
GOOD: Recorded = {
    f'chestct_requests_total{{{PREDICT},code="200"}}': 970,
    f'chestct_requests_total{{{PREDICT},code="429"}}': 20,
    f'chestct_requests_total{{{PREDICT},code="500"}}': 2,
    'chestct_requests_total{route="inference",code="RESOURCE_EXHAUSTED"}': 8,
    'chestct_requests_total{route="/livez",code="200"}': 5000,
    f'chestct_request_seconds_bucket{{{PREDICT},le="0.5"}}': 995,
    f'chestct_request_seconds_bucket{{{PREDICT},le="1.0"}}': 1000,
    f'chestct_request_seconds_bucket{{{PREDICT},le="+Inf"}}': 1000,
    'chestct_predictions_total{label="normal",decision="accept"}': 100,
    'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 700,
    'chestct_predictions_total{label="squamous.cell.carcinoma",decision="refer"}': 60,
    'chestct_predictions_total{label="",decision="refer"}': 60,
    'chestct_predictions_total{label="",decision="reject"}': 80,
    'chestct_reasons_total{decision="refer",reason="unfamiliar"}': 60,
}
"""1000 requests and 1000 pictures a minute: 0.2 % fail, 2.8 % are refused, 8 % rejected and 6 % unfamiliar."""

WORSE: dict[str, tuple[Recorded, str, float]] = {
    "fails more often": (
        {f'chestct_requests_total{{{PREDICT},code="500"}}': 32, f'chestct_requests_total{{{PREDICT},code="200"}}': 940},
        "errors",
        0.032,
    ),
    "refuses twice as many requests": (
        {
            f'chestct_requests_total{{{PREDICT},code="429"}}': 40,
            'chestct_requests_total{route="inference",code="RESOURCE_EXHAUSTED"}': 16,
            f'chestct_requests_total{{{PREDICT},code="200"}}': 942,
        },
        "refused",
        0.056 - 1.5 * 0.028,
    ),
    "is slow for one in fifty": (
        {
            f'chestct_request_seconds_bucket{{{PREDICT},le="0.5"}}': 900,
            f'chestct_request_seconds_bucket{{{PREDICT},le="1.0"}}': 980,
            f'chestct_request_seconds_bucket{{{PREDICT},le="5.0"}}': 1000,
        },
        "latency",
        1 + 4 * 10 / 20,
    ),
    "accepts what the previous one referred": (
        {
            'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 500,
            'chestct_predictions_total{label="adenocarcinoma",decision="accept"}': 200,
        },
        "referral",
        0.2,
    ),
    "rejects twice as many pictures": (
        {
            'chestct_predictions_total{label="",decision="reject"}': 160,
            'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 620,
        },
        "reject",
        0.08 - 0.5 * 0.08,
    ),
    "rejects no picture any more": (
        {
            'chestct_predictions_total{label="",decision="reject"}': 0,
            'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 780,
        },
        "reject",
        0.08 - 0.5 * 0.08,
    ),
    "finds twice as many pictures unfamiliar": (
        {
            'chestct_reasons_total{decision="refer",reason="unfamiliar"}': 120,
            'chestct_predictions_total{label="",decision="refer"}': 120,
            'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 640,
        },
        "unfamiliar",
        0.06 - 0.5 * 0.06,
    ),
    "names a class that the previous one never named": (
        {
            'chestct_predictions_total{label="adenocarcinoma",decision="refer"}': 550,
            'chestct_predictions_total{label="large.cell.carcinoma",decision="refer"}': 150,
        },
        "class-mix",
        0.15,
    ),
}
"""What each worse release does: its series that differ, the metric that must fail, and that metric's value."""


def series(pod: str, recorded: Recorded) -> list[dict[str, str]]:
    inside = f'namespace="chestct",pod="chestct-{pod}-x7k2p",'
    return [
        {"series": name.replace("{", "{" + inside, 1), "values": f"0+{growth}x{MINUTES}"}
        for name, growth in recorded.items()
    ]


def played(queries: dict[str, float | None], releases: dict[str, Recorded], folder: Path) -> None:
    """Check with promtool that each metric's query gives its value, or nothing, after half an hour."""
    expected = []
    for name, value in queries.items():
        query = METRICS[name]["provider"]["prometheus"]["query"]
        for argument, given in ARGUMENTS.items():
            query = query.replace("{{args." + argument + "}}", given)
        samples = [] if value is None else [{"labels": "{}", "value": round(value, 4)}]
        expected.append({"expr": f"round({query}, 0.0001)", "eval_time": f"{MINUTES}m", "exp_samples": samples})
    recorded = [item for pod, values in releases.items() for item in series(pod, values)]
    test = {"interval": "1m", "input_series": recorded, "promql_expr_test": expected}
    content = {"rule_files": [], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["promtool", "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def passes(name: str, value: float | None) -> bool:
    """Tell what Argo Rollouts makes of a query's value: whether the metric's condition holds."""
    condition = METRICS[name]["successCondition"].replace("||", " or ").replace("&&", " and ")
    names = {"result": [] if value is None else [value], "len": len, "isNaN": math.isnan}
    return bool(eval(condition, {"__builtins__": {}}, names))


pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's prometheus, is absent")

OF_A_GOOD_RELEASE: dict[str, float | None] = {
    "seen": 10_000,
    "errors": 0.002,
    "refused": 0.028 - 1.5 * 0.028,
    "latency": 0.5 * 990 / 995,
    "referral": 0,
    "reject": -0.5 * 0.08,
    "unfamiliar": -0.5 * 0.06,
    "class-mix": 0,
}


def test_every_metric_of_the_analysis_is_played() -> None:
    assert OF_A_GOOD_RELEASE.keys() == METRICS.keys()
    assert {metric for _, metric, _ in WORSE.values()} == METRICS.keys() - {"seen"}


def test_a_good_release_passes(tmp_path: Path) -> None:
    played(OF_A_GOOD_RELEASE, {"old": GOOD, "new": GOOD}, tmp_path)
    assert all(passes(name, value) for name, value in OF_A_GOOD_RELEASE.items())


@pytest.mark.parametrize("what", WORSE)
def test_a_release_fails_that(what: str, tmp_path: Path) -> None:
    changed, metric, value = WORSE[what]
    played({metric: value}, {"old": GOOD, "new": {**GOOD, **changed}}, tmp_path)
    assert not passes(metric, value)


def test_a_release_that_nobody_asked_waits_for_a_person(tmp_path: Path) -> None:
    idle = dict.fromkeys(GOOD, 0)
    played({"seen": 0}, {"old": GOOD, "new": idle}, tmp_path)
    played({"seen": None}, {"old": GOOD}, tmp_path)
    assert not passes("seen", 0)
    assert not passes("seen", None)
    assert METRICS["seen"]["failureCondition"] == "false"  # so the measurement is inconclusive, and not a failure


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_fails_at_more_than_its_bound_and_says_nothing_without_data(name: str) -> None:
    assert passes(name, None) is (name != "seen")
    assert passes(name, math.nan) is (name != "seen")
    assert passes(name, 10_000) is (name == "seen")
