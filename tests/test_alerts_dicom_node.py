"""Each alert of the DICOM node fires on its fault and clears after it. promtool plays the series."""

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

import dicom_node.metrics  # noqa: F401 - registers the metrics
from tests.manifests import find, rendered
from tests.server import ROOT
from tests.test_alerts import FAULT_MINUTES, IN_STAGING, counter, gauge, play
from tests.test_alerts import pytestmark as pytestmark

OBJECTS = rendered("production", ("dicom-node", "dicom-node-monitoring"))
RULES = find(OBJECTS, "PrometheusRule", "chestct-dicom-node")["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DAY = 24 * 60

WELL = [gauge("dicom_node_spool_series", "", "1+0", "1+0")]
FAULTS = {
    "DicomNodeAbsent": [gauge("dicom_node_spool_series", "", "_", "1+0")],
    "DicomNodeLate": [*WELL, gauge("dicom_node_oldest_seconds", "", "1900+0", "30+0")],
    "DicomNodeFull": [*WELL, counter("dicom_node_received_total", 'outcome="spool_full"', 4, stops=True)],
    "DicomNodeFails": [*WELL, counter("dicom_node_failed_total", 'step="send"', 1, stops=True)],
    "DicomNodeGaveUp": [*WELL, gauge("dicom_node_dead_letters", "", "1+0", "0+0")],
    "DicomNodeRejects": [*WELL, counter("dicom_node_associations_rejected_total", "", 1, stops=True)],
}
"""Series with the fault in the first half, by the alert."""
# A healthy node in another namespace, which must hide no fault in this one.
ELSEWHERE = [
    gauge("dicom_node_spool_series", "", "1+0", "1+0", IN_STAGING),
    gauge("dicom_node_oldest_seconds", "", "30+0", "30+0", IN_STAGING),
    {
        "series": f'dicom_node_received_total{{{IN_STAGING},outcome="stored"}}',
        "values": f"0+4x{12 * DAY}",
    },
]


def test_every_alert_has_a_fault_that_it_is_for_and_a_line_in_the_guide() -> None:
    assert FAULTS.keys() | {"DicomNodeReceivesNothing"} == ALERTS.keys()
    guide = (ROOT / "docs/how-to/connect-a-pacs.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(DicomNode\w+)` \|", guide, re.MULTILINE)) == ALERTS.keys()


def test_the_alerts_ask_for_metrics_that_the_node_has() -> None:
    counters, gauges = (
        {each.name for each in REGISTRY.collect() if each.type == kind and each.name.startswith("dicom_node_")}
        for kind in ("counter", "gauge")
    )
    has = {f"{name}_total" for name in counters} | gauges
    assert set(re.findall(r"dicom_node_\w+", " ".join(rule["expr"] for rule in ALERTS.values()))) <= has


@pytest.mark.parametrize("name", FAULTS)
def test_an_alert_fires_on_its_fault_and_clears_after_it(name: str, tmp_path: Path) -> None:
    series = [*FAULTS[name], *ELSEWHERE]
    play(name, series, tmp_path, {FAULT_MINUTES - 5: True, 2 * FAULT_MINUTES - 5: False}, RULES)


def test_one_failed_attempt_and_one_rejected_association_raise_no_alarm(tmp_path: Path) -> None:
    once = f"0x{FAULT_MINUTES} 1x{FAULT_MINUTES}"
    series = [
        *WELL,
        {"series": 'dicom_node_failed_total{namespace="chestct",pod="p",step="send"}', "values": once},
        {"series": 'dicom_node_associations_rejected_total{namespace="chestct",pod="p"}', "values": once},
    ]
    for name in ("DicomNodeFails", "DicomNodeRejects"):
        play(name, series, tmp_path, {FAULT_MINUTES + 5: False}, RULES)


def test_three_days_without_a_slice_raise_an_alarm_and_a_weekend_does_not(tmp_path: Path) -> None:
    got = 4 * 5 * DAY
    values = f"0+4x{5 * DAY} {got}x{4 * DAY} {got}+4x{2 * DAY}"  # five days with slices, four without, two with
    received = {"series": 'dicom_node_received_total{namespace="chestct",pod="p",outcome="stored"}', "values": values}
    moments = {5 * DAY: False, 7 * DAY: False, 8 * DAY + 60: True, 9 * DAY + 60: False}
    play("DicomNodeReceivesNothing", [*WELL, received, *ELSEWHERE], tmp_path, moments, RULES)
