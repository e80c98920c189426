"""The steps of a request: turns, the page, and a short run with the tiny model's card."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.steps import __main__ as steps
from benchmarks.steps import process, turns
from chestct.interrupts import INTERRUPTED
from load_tests.verdict import BAD_INPUT
from tests.graphs import tiny_card
from tests.server import ROOT, environment, import_tiny_model
from tests.waiting import wait_until

CHILDREN = 2
"""The process that measures, and multiprocessing's own that keeps track of locks."""
CLIENTS = 6
"""One for each kind of request."""


def test_measurements_take_turns_and_the_first_rounds_do_not_count() -> None:
    made: list[str] = []

    def named(name: str) -> turns.Turn:
        async def turn() -> None:
            made.append(name)

        return turn

    times = asyncio.run(turns.medians({name: named(name) for name in ("inner", "outer")}, 3))
    assert made == ["inner", "outer"] * (turns.WARM_UP + 3)
    assert set(times) == {"inner", "outer"}


def test_a_turn_makes_its_requests_at_the_same_time() -> None:
    begun = 0

    async def ask() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0)
        assert begun == turns.AT_ONCE

    asyncio.run(turns.together(ask)())  # type: ignore[arg-type] # a turn is a coroutine function
    assert begun == turns.AT_ONCE


def test_the_steps_add_up_to_the_whole_and_a_kind_may_lack_a_step() -> None:
    http, grpc = {"decision": 40.2, "BentoML": 90.1, "connection": 300.4}, {"decision": 41.0, "connection": 9.0}
    page = steps.document({"HTTP": http, "gRPC": grpc}, {"CPU": "of a test"}, 7)
    rows = (
        "| decision | 40 | 41 |",
        "| BentoML | 90 |  |",
        "| connection | 300 | 9 |",
        "| **whole** | **431** | **50** |",
    )
    assert "\n".join(("| step | HTTP | gRPC |", "|---|---:|---:|", *rows)) in page
    assert "medians of 7 turns" in page
    assert "| CPU | of a test |" in page


def test_every_kind_of_request_is_measured_step_by_step() -> None:
    table = process.measure(tiny_card(), rounds=2)
    kinds = ("HTTP, file", "HTTP, 8 files", "HTTP, OIP, pixels", "gRPC, file", "gRPC, pixels", "gRPC, 8 pixels")
    assert tuple(table) == kinds
    for steps_of_one in table.values():
        for word, step in zip(("decision", "queue", "route", "record", "connection"), steps_of_one, strict=True):
            assert word in step
        assert sum(steps_of_one.values()) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' signal at a parent's death")
def test_ctrl_c_ends_it_and_its_processes_in_one_line(tmp_path: Path) -> None:
    home = tmp_path / "bentoml"
    settings = environment(home, CHESTCT_MODEL=import_tiny_model(home))
    # A shell's job in the background ignores SIGINT, and so would its child.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "benchmarks.steps", "--rounds=100000"]
    page = f"--document={tmp_path / 'steps.md'}"
    with subprocess.Popen(
        [*command, page],
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        own = psutil.Process(run.pid)
        # A client that is still starting would say that the process that measures has gone.
        wait_until(lambda: len(own.children(recursive=True)) >= CHILDREN + CLIENTS, "it measures, and has its clients")
        children = own.children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)  # as in a terminal, it reaches all processes
        said, errors = run.communicate(timeout=300)
    assert (run.returncode, said, errors) == (INTERRUPTED, "", "steps: interrupted\n")
    assert psutil.wait_procs(children, timeout=300)[1] == []


def test_a_store_without_a_model_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    monkeypatch.setenv("CHESTCT_MODEL", "chestct:absent")
    assert steps.main([]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("steps: ")
