"""The search for settings: what it tries, chooses and writes. No server is started."""

import itertools
import math
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks import tune
from benchmarks.tune_choice import Configuration, Latency, Measurement
from chestct.interrupts import INTERRUPTED
from load_tests.traffic import Outcome
from load_tests.verdict import BAD_INPUT, MISSED
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
    monkeypatch.setattr(tune, "present", lambda: Configuration(1, 2))
    monkeypatch.setattr(tune, "compare", lambda *_: [1.6] * 10)
    monkeypatch.setattr(tune, "check", lambda one, *_: (one, Latency(200, 0.1, 0.15)))
    return tune.FOLDER


def test_what_was_not_answered_took_forever() -> None:
    good = [Outcome("HTTP", "200", 0.1)] * 98 + [Outcome("gRPC", "OK", 0.3)]
    assert tune.latency([*good, Outcome("HTTP", "429", 0.01)], 50) == (50, 0.1, 0.3)
    assert tune.latency([*good[2:], *[Outcome("gRPC", "UNAVAILABLE", 0.01)] * 2], 50).p99 == math.inf
    assert tune.latency([], 50).p99 == math.inf


def test_a_shell_and_the_service_read_what_is_written(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=60)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert tune.main(["--p99", "200"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:11]
    assert head.split() == ["workers", "threads", "batch", "capacity", "rate", "p99", "to", "go"]
    assert rows[2].split() == ["2", "1", "2", "111.1/s", "100.0/s", "100", "ms", "9.0", "min"]
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
    assert "111.1 images a second at most; p99 100 ms at 100.0" in comments[2]
    assert "did 1.60 times the present settings (1.60 to 1.60) in 10 pairs" in comments[3]
    assert "with this queue p99 100 ms at 100.0, and 150 ms of what is taken of 200.0" in comments[4]
    with Image.open(machine / "tune.png") as picture:
        assert picture.width > 500
    assert sorted(file.name for file in machine.iterdir()) == ["settings.env", "tune.png"]


def test_a_bound_that_no_median_keeps_ends_in_one_line(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--p99", "1"]) == MISSED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not machine.exists()


def test_a_machine_that_wavers_keeps_the_present_settings_and_the_file_says_why(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "measure", lambda one, *_: measured(*one[:3], p99=0.9))
    assert tune.main([]) == 0
    text = (machine / "settings.env").read_text(encoding="utf-8")
    assert "`make tune` on " in text
    assert "# the present settings stay: no others did more\n" in text
    assert "# nothing kept a p99 of 200 ms in this run: try again on a calmer machine\n" in text
    assert "CHESTCT_WORKERS=1\nCHESTCT_ENGINE_THREADS=2\nCHESTCT_LARGEST_BATCH=2\nCHESTCT_QUEUE_SIZE=256\n" in text


def test_without_a_gain_in_pairs_the_present_settings_stay(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "compare", lambda *_: [1.6, 0.8] * 5)
    assert tune.main([]) == 0
    text = (machine / "settings.env").read_text(encoding="utf-8")
    assert "# the present settings stay: no gain is shown, workers 2, engine threads 1" in text
    assert "CHESTCT_WORKERS=1\n" in text


def test_a_pair_without_answers_within_the_bound_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by stubs: the second turn is as slow for both, and in the third only the present settings are."""
    now, other = measured(1, 2, rate=41.4), Configuration(2, 1)
    rates = iter([10.0, 5.0, 0.0, 0.0, 4.0, 0.0])  # the two of a pair in turn, `other` first in every second turn

    @contextmanager
    def stub(*_: object, **__: object) -> Iterator[None]:
        yield None

    @asynccontextmanager
    async def clients(*_: object) -> AsyncIterator[None]:
        yield None

    async def capacity(_: object, seconds: float, connections: int, within: float) -> float:
        assert (seconds, connections, within) == (2, 4, BOUND)
        return next(rates)

    monkeypatch.setattr(tune, "_cores", lambda: 2)
    monkeypatch.setattr(tune, "PAIRS", 3)
    monkeypatch.setattr(tune, "serve", stub)
    monkeypatch.setattr(tune, "_clients", clients)
    monkeypatch.setattr(tune.traffic, "capacity", capacity)
    assert tune.compare(now, other, BOUND, seconds=4) == [2, 16]


def test_if_no_queue_keeps_the_bound_the_present_one_stays(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "check", lambda chosen, bound, _: (chosen, chosen.held._replace(p99=2 * bound)))
    assert tune.main(["--p99", "200"]) == 0
    text = (machine / "settings.env").read_text(encoding="utf-8")
    assert "# the present queue stays: none kept a p99 of 200 ms" in text
    assert "CHESTCT_WORKERS=2\n" in text
    assert "CHESTCT_QUEUE_SIZE=256\n" in text


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
    monkeypatch.setattr(tune, "present", lambda: Configuration(2, 1))
    monkeypatch.setattr(tune.store, "find", lambda _: SimpleNamespace(tag="chestct:5eed"))
    monkeypatch.setattr(tune, "serve", serve)
    monkeypatch.setattr(tune.traffic, "run", interrupt)
    assert tune.main([]) == INTERRUPTED
    assert events == ["2 started, tune.log", "stopped"]
    assert not machine.exists()
    assert "interrupted" in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("half of it", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune._replace(tmp_path / "settings.env", write)
    assert list(tmp_path.iterdir()) == []
