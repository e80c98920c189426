"""What the measurement of roll-outs makes of the outcomes, and what it keeps and writes."""

import os
from pathlib import Path

import pytest

from load_tests.rollout import __main__ as rollout
from load_tests.rollout import events, replicas, results
from load_tests.rollout.events import Bound, judge
from load_tests.traffic import Outcome
from load_tests.verdict import BAD_INPUT, LoadError

ROW = events.Row("undo", 100, {"429": 2}, 3, 1.25, (10.0, 20.0, 30.4), "0 lost", False)


def test_the_outcomes_are_counted_and_timed_before_during_and_after() -> None:
    outcomes = [Outcome("HTTP", "200", 0.010)] * 10 + [Outcome("gRPC", "OK", 0.050)] * 10
    outcomes += [Outcome("HTTP", "200", 0.020)] * 10
    outcomes[12] = Outcome("HTTP", "lost", 0.3)
    outcomes[15] = Outcome("gRPC", "UNAVAILABLE", 0.1)
    row = judge("x", outcomes, rate=10, begun=1, ended=2, retried=4, bound=Bound(lost=2))
    assert (row.sent, row.lost, row.retried, row.held) == (30, {"UNAVAILABLE": 1, "lost": 1}, 4, True)
    assert row.over == pytest.approx(0.6)  # the later one was due half a second after the begin
    assert row.p99 == pytest.approx((10, 50, 20))
    assert not judge("x", outcomes, 10, 1, 2, 0, Bound(lost=1)).held
    assert judge("x", outcomes, 10, 1, 2, 0, Bound(over=0.7)).held
    assert not judge("x", outcomes, 10, 1, 2, 0, Bound(over=0.5)).held


@pytest.mark.parametrize(
    ("bound", "words"),
    [(Bound(lost=0), "0 lost"), (Bound(lost=3), "at most 3 lost"), (Bound(over=30), "over within 30 s")],
)
def test_a_bound_is_said_in_words(bound: Bound, words: str) -> None:
    assert bound.words() == words


def test_the_page_gets_a_row_for_each_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "rollouts.md"
    page.write_text("# Roll-outs\n", encoding="utf-8")
    monkeypatch.setattr(results, "PAGE", page)
    results.write_page([results.Run(28.4, [ROW])] * 2, "5eed" * 16, "c0ffee")
    text = page.read_text(encoding="utf-8")
    row = "| undo | 100 | 98 | 2 (429 2) | 3 | 1.2 s | 10 ms | 20 ms | 30 ms | 0 lost | **no** |"
    assert f"\n| 1 {row}\n| 2 {row}\n" in text
    assert "commit c0ffee" in text
    assert f"image 5eed5eed5eed, 28 requests/s, {os.cpu_count()} cores of " in text


def test_a_run_is_kept_for_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "rollout")
    run = results.Run(28.4, [ROW])
    results.keep(2, run, "image")
    found = results.kept(2, "image")
    assert found is not None
    assert results.table([found]) == results.table([run])
    assert results.kept(2, "another image") is None
    assert results.kept(1, "image") is None


def test_a_tool_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert rollout.main(["image:1"]) == BAD_INPUT
    assert capsys.readouterr().err == "rollout: kubectl is needed; it renders the manifests\n"
    with pytest.raises(LoadError, match="docker or podman is needed"):
        replicas.run_tool("podman", "info")
