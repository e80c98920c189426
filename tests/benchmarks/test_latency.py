"""The latency table: calls take turns, and a missing model is reported in one line."""

from pathlib import Path

import pytest

from benchmarks import latency
from load_tests.verdict import BAD_INPUT


def test_calls_take_turns_and_the_first_rounds_do_not_count() -> None:
    made: list[str] = []
    times = latency.measure({name: lambda name=name: made.append(name) for name in ("bare", "HTTP")})  # type: ignore[misc]
    assert made == ["bare", "HTTP"] * (latency.WARM_UP + latency.ROUNDS)
    assert {name: len(values) for name, values in times.items()} == {"bare": latency.ROUNDS, "HTTP": latency.ROUNDS}


def test_a_store_without_a_model_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    monkeypatch.setenv("CHESTCT_MODEL", "chestct:absent")
    assert latency.main() == BAD_INPUT
    assert capsys.readouterr().err.startswith("latency: ")
