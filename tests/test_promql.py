"""The PromQL of rules, dashboard, autoscaler and analysis names what the service shows, and counts what it promises."""

import ast
import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from k8s.render import ALL, COMBINATIONS, HERE
from serving.telemetry import metrics
from serving.telemetry.request_record import CLIENT_LATE
from tests.manifests import find, namespace, rendered

MONITORING = HERE / "components/monitoring"
PROBES = 'route!~"/livez|/readyz|/healthz|/metrics"'
METRICS = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
METRICS += metrics.WATCHED.values()


def queries() -> dict[str, str]:
    """Return each PromQL expression of rules, dashboard, autoscaler and analysis, by its place."""
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    found |= {
        item["name"]: item["query"]["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"
    }
    objects = rendered("production", ALL)
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


@pytest.mark.parametrize("where", queries())
def test_a_query_names_metrics_and_labels_that_exist(where: str) -> None:
    query = queries()[where]
    bare = re.sub(r'"[^"]*"', '""', query)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"chestct:[\w:]+", bare)) <= recorded
    names = set(re.findall(r"(?<![\w:])chestct_\w+", bare))
    assert names <= exposed()
    allowed = {label for name in names for label in labels_of(name)} | {"namespace"}
    if "chestct:watched:" in bare:  # recorded by fact and bin
        allowed |= labels_of("chestct_reference_share")
    used = {word for words in re.findall(r"by \(([^)]*)\)", bare) for word in re.split(r",\s*", words)}
    used |= {label for inside in re.findall(r"\{([^}]*)\}", bare) for label in re.findall(r"(\w+)\s*[=!]", inside)}
    assert used <= allowed


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=lambda value: "-".join((value[0], *value[1])))
def test_scaling_and_analysis_look_at_their_own_namespace(chosen: tuple[str, tuple[str, ...]]) -> None:
    objects = rendered(*chosen)
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
    own = namespace(objects)
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
