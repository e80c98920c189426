"""The search for settings: what it tries, chooses and writes. No server is started."""

import itertools
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks import tune
from benchmarks.tune import Configuration, Latency, Measurement
from load_tests.traffic import Outcome
from load_tests.verdict import BAD_INPUT, INTERRUPTED, MISSED
from serving.settings import Settings

BOUND = 0.2


def measured(workers: int = 2, threads: int = 1, batch: int = 2, *, rate: float = 90, p99: float = 0.1) -> Measurement:
    """Return a measurement with a median latency of 50 ms."""
    return Measurement(Configuration(workers, threads, batch), rate / 0.9, Latency(rate, 0.05, p99))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cores and a model, on which two workers of one thread are fastest. Returns the output folder."""
    monkeypatch.setattr(tune, "FOLDER", tmp_path / "build" / "tune")
    monkeypatch.setattr(tune, "ROOT", tmp_path)
    monkeypatch.setattr(tune, "_cores", lambda: 2)
    monkeypatch.setattr(tune.store, "find", lambda _: SimpleNamespace(tag="chestct:5eed"))
    monkeypatch.setattr(tune, "measure", lambda one, *_: measured(*one[:3], rate=100 if one[:2] == (2, 1) else 60))
    monkeypatch.setattr(tune, "check", lambda one, *_: (one, Latency(200, 0.1, 0.15)))
    return tune.FOLDER


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 2), (2, 1), (3, 1)]),
        (4, [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (6, 1)]),
    ],
)
def test_each_combination_uses_the_cores_and_at_most_half_more(cores: int, expected: list[tuple[int, int]]) -> None:
    assert [pair[:2] for pair in tune.pairs(cores)] == expected


@pytest.mark.parametrize("cores", [3, 6, 32, 96])
def test_on_many_cores_the_combinations_stay_few(cores: int) -> None:
    found = tune.pairs(cores)
    assert all(cores / 2 <= workers * threads <= 1.5 * cores for workers, threads, *_ in found)
    assert {(1, cores), (cores, 1)} <= {pair[:2] for pair in found}
    assert len(set(found)) == len(found) <= 16


def test_batches_are_tried_on_the_best_two_within_the_bound() -> None:
    rates = {(1, 1): (60, 0.1), (1, 2): (70, 0.1), (2, 1): (100, 0.1), (3, 1): (120, 0.3)}
    shown: list[tuple[int, int]] = []

    def measure(one: Configuration) -> Measurement:
        rate, p99 = rates[one[0], one[1]]
        return measured(*one[:3], rate=rate, p99=p99)

    found = tune.search(2, BOUND, measure, lambda _, number, total: shown.append((number, total)))
    assert [one.configuration[:3] for one in found[4:]] == [
        *((2, 1, batch) for batch in (1, 4, 8)),
        *((1, 2, batch) for batch in (1, 4, 8)),
    ]
    assert shown == [(number, 10) for number in range(1, 11)]


def test_the_most_within_the_bound_is_chosen() -> None:
    best = measured(2, 1, 4, rate=110)
    assert tune.choose([measured(rate=100), best, measured(3, 1, rate=150, p99=0.201)], BOUND) is best


def test_of_what_does_as_much_the_one_that_takes_least_memory_is_chosen() -> None:
    cheap = measured(1, 2, 2, rate=96)
    others = [measured(2, 1, 1, rate=100), measured(1, 2, 8, rate=97), measured(1, 1, 1, rate=94)]
    assert tune.choose([*others, cheap], BOUND) is cheap


def test_if_nothing_keeps_the_bound_the_nearest_is_named() -> None:
    with pytest.raises(tune.Missed, match=r"a p99 of 200 ms; the nearest, workers 1, engine threads 2, .* has 250 ms"):
        tune.choose([measured(p99=math.inf), measured(1, 2, p99=0.25)], BOUND)


def test_what_was_not_answered_took_forever() -> None:
    good = [Outcome("HTTP", "200", 0.1)] * 98 + [Outcome("gRPC", "OK", 0.3)]
    assert tune.latency([*good, Outcome("HTTP", "429", 0.01)], 50) == (50, 0.1, 0.3)
    assert tune.latency([*good[2:], *[Outcome("gRPC", "UNAVAILABLE", 0.01)] * 2], 50).p99 == math.inf
    assert tune.latency([], 50).p99 == math.inf


def test_a_queue_is_what_a_worker_answers_in_the_time_that_is_left() -> None:
    assert tune.queue_size(BOUND, measured(rate=90)) == 7  # 50 images a second for 150 ms
    assert tune.queue_size(0.051, measured(rate=90)) == 1
    assert tune.queue_size(600, measured(rate=90)) == 10_000


def test_a_queue_that_is_too_long_in_a_burst_is_shortened() -> None:
    tried: list[int] = []

    def check(one: Measurement) -> tuple[Measurement, Latency]:
        tried.append(one.configuration.queue_size)
        return one, Latency(200, 0.1, 0.05 * tried[-1])

    chosen, burst = tune.fit_queue(measured(), BOUND, check)
    assert tried == [7, 4]
    assert (chosen.configuration.queue_size, burst.p99) == (4, 0.2)


@pytest.mark.parametrize(("below", "burst"), [(0.1, 0.4), (math.inf, 0.1), (0.1, math.inf)])
def test_a_bound_that_no_queue_keeps_is_missed(below: float, burst: float) -> None:
    with pytest.raises(tune.Missed, match="no queue keeps a p99 of 200 ms"):
        tune.fit_queue(measured(), BOUND, lambda one: (measured(p99=below), Latency(200, 0.1, burst)))


def test_a_shell_and_the_service_read_what_is_written(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=60)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert tune.main(["--p99", "200"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:11]
    assert head.split() == ["workers", "threads", "batch", "capacity", "rate", "p99", "to", "go"]
    assert rows[2].split() == ["2", "1", "2", "111.1/s", "100.0/s", "100", "ms", "8.0", "min"]
    path = machine / "settings.env"
    shell = ["sh", "-c", f"set -a; . {path}; env"]
    output = subprocess.run(shell, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    for line in output.splitlines():
        if line.startswith("CHESTCT_"):
            monkeypatch.setenv(*line.split("=", 1))
    settings = Settings.read()
    assert (settings.workers, settings.engine_threads, settings.largest_batch, settings.queue_size) == (2, 1, 1, 8)
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert "`make tune P99=200`" in comments[0]
    assert "chestct:5eed" in comments[0]
    assert "p99 100 ms at 100.0, and 150 ms of what is taken of 200.0" in comments[2]
    with Image.open(machine / "tune.png") as picture:
        assert picture.width > 500
    assert sorted(file.name for file in machine.iterdir()) == ["settings.env", "tune.png"]


def test_a_bound_that_nothing_keeps_ends_in_one_line(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--p99", "1"]) == MISSED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not machine.exists()


def test_if_no_queue_keeps_the_bound_the_picture_stays(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "check", lambda chosen, bound, _: (chosen, chosen.held._replace(p99=2 * bound)))
    assert tune.main(["--p99", "200"]) == MISSED
    assert "no queue keeps a p99 of 200 ms" in capsys.readouterr().err
    assert [file.name for file in machine.iterdir()] == ["tune.png"]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast"])
def test_a_bound_that_makes_no_sense_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tune.main(["--p99", value])
    assert stop.value.code == BAD_INPUT
    assert f"argument --p99: expected milliseconds above 0, got {value}" in capsys.readouterr().err


def test_a_store_without_a_model_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHESTCT_MODEL", "chestct:absent")
    assert tune.main([]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tune: ")


def test_an_interrupt_leaves_no_server_and_no_file(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    @contextmanager
    def serve(*, environment: dict[str, str], log: Path) -> Iterator[Any]:
        events.append(f"{environment['CHESTCT_WORKERS']} started, {log.name}")
        try:
            yield SimpleNamespace()
        finally:
            events.append("stopped")

    def interrupt(work: Any) -> None:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.undo()
    monkeypatch.setattr(tune, "FOLDER", machine)
    monkeypatch.setattr(tune, "_cores", lambda: 2)
    monkeypatch.setattr(tune.store, "find", lambda _: SimpleNamespace(tag="chestct:5eed"))
    monkeypatch.setattr(tune, "serve", serve)
    monkeypatch.setattr(tune.traffic, "run", interrupt)
    assert tune.main([]) == INTERRUPTED
    assert events == ["1 started, tune.log", "stopped"]
    assert not machine.exists()
    assert "interrupted" in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("half of it", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune._replace(tmp_path / "settings.env", write)
    assert list(tmp_path.iterdir()) == []
