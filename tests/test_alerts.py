"""Each alert fires on its fault and clears after it. promtool plays the series."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.judging.drift import stability_index
from serving.telemetry.request_record import CLIENT_LATE
from tests.manifests import find, rendered

RULES = find(rendered("production", ("monitoring",)), "PrometheusRule")["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
IN_POD = 'namespace="chestct",pod="p"'
IN_STAGING = 'namespace="chestct-staging",pod="s"'
FAULT_MINUTES = 720

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's prometheus, is absent")


def counter(name: str, labels: str, per_minute: int, *, stops: bool, pod: str = IN_POD) -> dict[str, str]:
    """Return a series that grows all day, or only during the fault."""
    end = per_minute * FAULT_MINUTES
    after = f"{end}x{FAULT_MINUTES}" if stops else f"{end}+{per_minute}x{FAULT_MINUTES}"
    return {"series": f"{name}{{{pod},{labels}}}", "values": f"0+{per_minute}x{FAULT_MINUTES} {after}"}


def gauge(name: str, labels: str, during: str, after: str, pod: str = IN_POD) -> dict[str, str]:
    return {
        "series": f"{name}{{{pod}{labels}}}",
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
    # the slow fifth is fast after the fault
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
    "ChestctRefusing": [
        MODEL,
        counter("chestct_requests_total", 'code="200"', 900, stops=False),
        counter("chestct_requests_total", 'code="429"', 50, stops=True),
        counter("chestct_requests_total", 'code="RESOURCE_EXHAUSTED"', 50, stops=True),
    ],
    # Some of each cause, which only together are many.
    "ChestctWorkersDie": [
        MODEL,
        *(
            {
                "series": f'chestct_worker_restarts_total{{{IN_POD},cause="{cause}"}}',
                "values": f"0+0.1x{FAULT_MINUTES} {FAULT_MINUTES / 10:g}x{FAULT_MINUTES}",
            }
            for cause in ("hung", "killed", "exited")
        ),
    ],
    "ChestctCertificateEnds": [
        MODEL,
        gauge("chestct_certificate_end_timestamp_seconds", ',protocol="grpc"', "90000+0", "9999999+0"),
    ],
    "ChestctInferenceLogDrops": [
        MODEL,
        {
            "series": f"chestct_inference_log_rows_dropped_total{{{IN_POD}}}",
            "values": f"0+3x{FAULT_MINUTES} {3 * FAULT_MINUTES}x{FAULT_MINUTES}",
        },
    ],
    "ChestctTwoModels": [MODEL, gauge("chestct_model_info", ',model="chestct:b"', "1+0", "stale _")],
    "ChestctRejecting": [
        MODEL,
        counter("chestct_predictions_total", 'decision="accept"', 60, stops=False),
        counter("chestct_predictions_total", 'decision="reject"', 40, stops=True),
    ],
    "ChestctUnfamiliar": [
        MODEL,
        counter("chestct_predictions_total", 'decision="accept"', 60, stops=False),
        counter("chestct_predictions_total", 'decision="refer"', 40, stops=True),
        counter("chestct_reasons_total", 'decision="refer",reason="unfamiliar"', 40, stops=True),
    ],
}
BODY = (("-Inf", "0.7", 0.5), ("0.7", "0.8", 0.25), ("0.8", "+Inf", 0.25))
"""A reference of `input_body`: above, le, share."""


def watched(during: tuple[float, ...], after: tuple[float, ...] = (8, 4, 4)) -> list[dict[str, str]]:
    """Return the reference of `input_body`, and images of so many a minute in each of its bins."""
    series = []
    for place, (above, le, share) in enumerate(BODY):
        bin_of = f',fact="input_body",above="{above}",le="{le}"'
        series.append(gauge("chestct_reference_share", bin_of, f"{share}+0", f"{share}+0"))
        one, two = (round(sum(each[: place + 1]), 3) for each in (during, after))
        end = one * FAULT_MINUTES
        values = f"0+{one}x{FAULT_MINUTES} {end}+{two}x{FAULT_MINUTES}"
        series.append({"series": f'chestct_input_body_bucket{{{IN_POD},le="{le}"}}', "values": values})
    return series


FAULTS["ChestctDrift"] = [MODEL, *watched((0, 0, 4))]
# A healthy namespace, which must not hide the fault in this one.
STAGING = [
    gauge("chestct_model_info", ',model="chestct:a"', "1+0", "1+0", IN_STAGING),
    counter("chestct_requests_total", 'code="200"', 9000, stops=False, pod=IN_STAGING),
]


def play(
    name: str, series: list[dict[str, str]], folder: Path, moments: dict[int, bool], rules: dict[str, Any] = RULES
) -> None:
    """Check with promtool whether the alert fires at these minutes, in production's namespace alone.

    promtool gets no other alert. No rule depends on one, and each takes its time.
    """
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if rule.get("alert", name) == name]}
        for group in rules["groups"]
    ]
    query = f'count by (namespace) (ALERTS{{alertname="{name}",alertstate="firing"}})'
    firing = {'{namespace="chestct"}': 1.0}
    expected = {minute: firing if fires else {} for minute, fires in moments.items()}
    ask([*series, *STAGING], folder, query, expected, {"groups": groups})


def ask(
    series: list[dict[str, str]],
    folder: Path,
    query: str,
    expected: dict[int, dict[str, float]],
    rules: dict[str, Any] = RULES,
) -> None:
    """Check with promtool what a query gives at these minutes: its values by their labels."""
    asked = [
        {
            "expr": query,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
        }
        for minute, samples in expected.items()
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": [test]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "test.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["promtool", "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_fault_that_it_is_for() -> None:
    assert FAULTS.keys() == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_on_its_fault_and_clears_after_it(name: str, tmp_path: Path) -> None:
    play(name, FAULTS[name], tmp_path, {FAULT_MINUTES - 5: True, 2 * FAULT_MINUTES - 5: False})


def test_clients_whose_own_short_deadline_passes_are_no_fault_and_hide_none(tmp_path: Path) -> None:
    late = counter("chestct_requests_total", f'code="{CLIENT_LATE}"', 100_000, stops=False)
    good = counter("chestct_requests_total", 'code="200"', 900, stops=False)
    play("ChestctFailingFast", [MODEL, good, late], tmp_path, {FAULT_MINUTES - 5: False})
    play("ChestctFailingFast", [*FAILING, late], tmp_path, {FAULT_MINUTES - 5: True})


def test_rejected_and_unfamiliar_pictures_raise_each_their_own_alert(tmp_path: Path) -> None:
    play("ChestctUnfamiliar", FAULTS["ChestctRejecting"], tmp_path, {FAULT_MINUTES - 5: False})
    play("ChestctRejecting", FAULTS["ChestctUnfamiliar"], tmp_path, {FAULT_MINUTES - 5: False})


@pytest.mark.parametrize(
    ("name", "code"), [("ChestctFailingFast", "500"), ("ChestctSlowFast", "200"), ("ChestctRefusing", "429")]
)
def test_two_pods_probes_do_not_hide_that_the_one_request_a_minute_goes_wrong(
    name: str, code: str, tmp_path: Path
) -> None:
    predict, inside = 'route="/v1/predict"', 'le="1.0"'
    series = [
        MODEL,
        counter("chestct_requests_total", f'{predict},code="{code}"', 1, stops=True),
        counter("chestct_request_seconds_count", predict, 1, stops=True),
        counter("chestct_request_seconds_bucket", f"{predict},{inside}", 0, stops=True),
    ]
    for pod in ("p", "q"):
        for route, a_minute in (("/livez", 6), ("/metrics", 4)):
            asked = f'route="{route}"'
            where = f'namespace="chestct",pod="{pod}"'
            series += [
                counter("chestct_requests_total", f'{asked},code="200"', a_minute, stops=False, pod=where),
                counter("chestct_request_seconds_count", asked, a_minute, stops=False, pod=where),
                counter("chestct_request_seconds_bucket", f"{asked},{inside}", a_minute, stops=False, pod=where),
            ]
    play(name, series, tmp_path, {FAULT_MINUTES - 5: True, 2 * FAULT_MINUTES - 5: False})


@pytest.mark.parametrize("images", [(1, 1, 2), (0, 1, 3), (2, 1, 1)])
def test_the_recorded_stability_index_is_that_of_make_drift(images: tuple[int, ...], tmp_path: Path) -> None:
    now, reference = np.array(images) / sum(images), np.array([share for *_, share in BODY])
    index = round(float(stability_index(now, reference)), 3)
    labels = '{fact="input_body",namespace="chestct"}'
    query = "round(chestct:watched:psi1d, 0.001)"
    ask(watched(images), tmp_path, query, {FAULT_MINUTES: {labels: index}})


def test_a_day_of_few_images_raises_no_alarm_for_drift(tmp_path: Path) -> None:
    play("ChestctDrift", [MODEL, *watched((0, 0, 0.1))], tmp_path, {FAULT_MINUTES - 5: False})
