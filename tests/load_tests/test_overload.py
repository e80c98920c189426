"""The verdict on an overload: what the service may do, and what it may not."""

import pytest

from load_tests import overload
from load_tests.traffic import Outcome
from load_tests.verdict import BAD_INPUT, MISSED


def result(*, good: int = 900, seconds: float = 1.0, other: str = "429", growth: float = 1.0) -> overload.Result:
    """Return the result of ten seconds at a capacity of 100 requests/s."""
    outcomes = [Outcome("HTTP", "200", seconds)] * good + [Outcome("gRPC", other, 0.01)] * (3000 - good)
    return overload.Result(100, outcomes, [100e6] * 5 + [growth * 100e6] * 5, 10, 5)


@pytest.mark.parametrize("other", ["429", "RESOURCE_EXHAUSTED", "503", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_what_is_refused_in_words_passes(other: str) -> None:
    assert overload.judge(result(other=other))[1] == []


@pytest.mark.parametrize(
    ("planted", "miss"),
    [
        ({"good": 740}, "goodput of 74%"),
        ({"seconds": 5.1}, "accepted p99 5.10 s"),
        ({"other": "500"}, "expected answers or refusals, got {'500': 2100}"),
        ({"other": "lost"}, "got {'lost': 2100}"),
        ({"other": "INTERNAL"}, "got {'INTERNAL': 2100}"),
        ({"growth": 1.2}, "memory grew from 95 to 114 MB"),
    ],
)
def test_a_planted_failure_is_found(planted: dict[str, float | str], miss: str) -> None:
    assert any(miss in found for found in overload.judge(result(**planted))[1])  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.usefixtures("tiny_store")
def test_the_command_prints_its_table_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert overload.main(["--seconds", "2"]) in (0, MISSED)  # a shared machine gives no verdict on time
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["capacity", "offered", "goodput"]
    assert lines[-1] in ("PASS", "FAIL")
    assert not [line for line in lines if "expected answers or refusals" in line]


def test_a_store_without_a_model_ends_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("empty")))
    assert overload.main(["--seconds", "1"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("overload: ")
