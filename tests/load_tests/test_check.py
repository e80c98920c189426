"""The verdict on a load test, from Locust's CSV files."""

from pathlib import Path

import pytest

from load_tests import check, shapes
from load_tests.run import HERE
from load_tests.verdict import LoadError

HTTP, OIP = "/v1/predict", "/v2/models/chestct/infer"
BOUND = check.Bound(max_error_rate=0, max_p95_ms=300, max_p99_ms=500, min_requests_per_second=5)
RARE = BOUND.model_copy(update={"min_requests_per_second": 0})
GOOD = check.Row(requests=100, failures=0, rate=20, p95=60, p99=80)
MB = 2**20

STATISTICS = """\
Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%
POST,/v1/predict,80,0,16.0,20,60,80
POST,/v2/models/chestct/infer,20,2,4.0,10,40,50
GET,/v2/models/chestct,0,0,0.0,N/A,N/A,N/A
,Aggregated,100,2,20.0,20,60,80
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Locust's statistics."""
    (tmp_path / "locust_stats.csv").write_text(STATISTICS)
    return tmp_path


def objectives(*, growth: float | None = None, **rows: check.Bound) -> check.Objectives:
    return check.Objectives(rows={HTTP: BOUND, **rows}, max_memory_growth=growth)


def test_the_sum_and_rows_without_requests_are_left_out(folder: Path) -> None:
    assert check.read_rows(folder) == {
        HTTP: check.Row(requests=80, failures=0, rate=16, p95=60, p99=80),
        OIP: check.Row(requests=20, failures=2, rate=4, p95=40, p99=50),
    }


def test_a_load_test_that_left_nothing_has_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="Locust left no statistics"):
        check.read_rows(tmp_path)


def test_rows_within_their_bounds_miss_nothing() -> None:
    assert check.judge({HTTP: GOOD}, [], objectives()) == []


@pytest.mark.parametrize(
    ("planted", "miss"),
    [
        ({"failures": 1}, "error rate 0.0100, expected at most 0"),
        ({"p95": 301}, "p95 301 ms, expected at most 300 ms"),
        ({"p99": 501}, "p99 501 ms, expected at most 500 ms"),
        ({"rate": 4.9}, "4.9 requests/s, expected at least 5"),
    ],
)
def test_a_planted_figure_misses_its_bound_alone(planted: dict[str, float], miss: str) -> None:
    assert check.judge({HTTP: GOOD._replace(**planted)}, [], objectives()) == [f"{HTTP}: {miss}"]  # type: ignore[arg-type]


def test_rare_requests_may_be_missing_and_others_may_not() -> None:
    assert check.judge({}, [], objectives(rare=RARE)) == [f"{HTTP}: no request was made"]


def test_requests_without_a_bound_give_no_verdict() -> None:
    with pytest.raises(LoadError, match=f"got none for {OIP}"):
        check.judge({HTTP: GOOD, OIP: GOOD}, [], objectives())


def test_memory_that_is_warm_may_grow_as_far_as_the_bound_and_no_further() -> None:
    memory = [50 * MB] * 3 + [100 * MB] * 2 + [300 * MB] * 2 + [109 * MB] * 2
    assert check.judge({HTTP: GOOD}, memory, objectives(growth=1.1)) == []
    (miss,) = check.judge({HTTP: GOOD}, memory, objectives(growth=1.05))
    assert miss == "memory grew from 100 to 109 MB, expected at most 1.05 times"


def test_a_bound_on_memory_that_was_not_measured_gives_no_verdict() -> None:
    with pytest.raises(LoadError, match="memory was not measured"):
        check.judge({HTTP: GOOD}, [], objectives(growth=1.1))


def test_each_scenario_has_bounds_for_the_same_rows_and_soak_alone_for_memory() -> None:
    found = {name: check.read_objectives(HERE / "slo.yaml", name) for name in shapes.SCENARIOS}
    assert len({frozenset(one.rows) for one in found.values()}) == 1
    assert [name for name, one in found.items() if one.max_memory_growth is not None] == ["soak"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steady: 1", "expected rows of bounds by scenario"),
        ("steady: {rows: {a: {max_error_rate: 0}}}", "max_p95_ms Field required"),
        ("steady: {rows: {}, max_memory_growth: 0.9}", "greater than or equal to 1"),
        ("steady: {", "expected rows of bounds by scenario"),
        ("- 1", "expected rows of bounds by scenario"),
        ("ramp: {rows: {}}", "expected bounds for steady, got some for ramp"),
    ],
)
def test_invalid_bounds_are_reported_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text(text)
    with pytest.raises(LoadError, match=words) as raised:
        check.read_objectives(slo, "steady")
    assert len(str(raised.value).splitlines()) == 1
