"""Killed, racing and sharded runs, as processes of their own."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from archive import checks, plans, rows
from archive.models import Model
from archive.sources import find_source
from chestct import tables
from chestct.buckets import Store
from tests.archive.conftest import Fill
from tests.server import ROOT
from tests.waiting import wait_until

KILLS = 5


@pytest.fixture
def out(tmp_path: Path, fill: Fill, model: Model) -> Path:
    """A plan of 600 files in 38 parts."""
    fill(tmp_path / "in", 600)
    plans.make(find_source(str(tmp_path / "in")), Store(str(tmp_path / "out"), make=True), model, part_rows=16)
    return tmp_path / "out"


def start(out: Path, model: Model, *arguments: str, **options: object) -> subprocess.Popen[str]:
    # A shell's job in the background ignores SIGINT, and so would its child.
    run = ["env", "--default-signal=INT", sys.executable, "-m", "archive", "score", "run", str(out)]
    command = [*run, "--model", str(model.graph.parent), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def parts(out: Path) -> list[Path]:
    return sorted((out / "parts").glob("*.parquet"))


def table(out: Path) -> list[tables.Row]:
    return [row for part in parts(out) for batch in tables.read(part, 500) for row in batch]


def check(out: Path) -> checks.Check:
    return checks.check(plans.load(Store(str(out))), str(out))


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' /proc, and its signal at a parent's death")
def test_killed_and_racing_runs_leave_each_row_once(out: Path, model: Model) -> None:
    luck = random.Random(5)
    for kill in range(KILLS):
        before = len(parts(out))
        process = start(out, model)
        if kill:  # also before the first part of a run, and at any moment after it
            wait_until(lambda before=before: len(parts(out)) > before, "a part is stored")  # type: ignore[misc]
            time.sleep(luck.uniform(0, 0.2))
        workers = children(process.pid)
        process.kill()
        process.communicate()
        for worker in workers:  # they die with their parent
            wait_until(lambda worker=worker: not Path(f"/proc/{worker}").exists(), "the worker has ended")  # type: ignore[misc]
    for process in [start(out, model), start(out, model)]:
        process.communicate(timeout=300)
    result = check(out)
    assert (result.complete, result.rows, result.missing, result.twice) == (True, 600, 0, 0)
    names = Counter(row["file"] for row in table(out))
    assert names == Counter(path.name for path in (out.parent / "in").iterdir())
    assert result.errors == {"undecodable_image": 1}


def test_four_shards_have_the_rows_of_one_run(out: Path, model: Model, tmp_path: Path) -> None:
    finish(start(out, model))
    whole = table(out)
    (tmp_path / "out").rename(tmp_path / "whole")
    plans.make(find_source(str(tmp_path / "in")), Store(str(out), make=True), model, part_rows=16)
    for shard in range(4):
        assert len(parts(out)) == sum(number % 4 < shard for number in range(38))
        finish(start(out, model, "--shard", f"{shard}/4", "--processes", "1"))
    for row in (*whole, *(sharded := table(out))):
        del row["seconds"]
    assert sharded == whole


def test_a_process_that_is_killed_ends_the_run_with_one_line(out: Path, model: Model) -> None:
    process = start(out, model, "--processes", "1")
    wait_until(lambda: parts(out), "a part is stored")
    worker = max(children(process.pid), key=lambda pid: Path(f"/proc/{pid}/cmdline").read_bytes().count(b"spawn_main"))
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.splitlines()[-1] == (
        f"error: a process was killed, perhaps for lack of memory; `chestct score run {out}` goes on"
    )
    finish(start(out, model))
    assert check(out).complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_in_one_line_and_the_next_run_goes_on(out: Path, model: Model, number: int) -> None:
    process = start(out, model, "--processes", "1", start_new_session=True)  # many would soon be done
    wait_until(lambda: parts(out), "a part is stored")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal, which reaches every process
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines() == [f"stopped; `chestct score run {out}` goes on"]
    stored = {path.name: path.stat().st_mtime_ns for path in parts(out)}
    assert 0 < len(stored) < 38
    finish(start(out, model))
    assert check(out).complete
    assert stored.items() <= {path.name: path.stat().st_mtime_ns for path in parts(out)}.items()  # no part anew


def test_a_full_disk_stops_with_one_line_and_a_later_run_goes_on(out: Path, model: Model) -> None:
    """A limit on the size of a file fails like a full disk: a part is cut off while it is written."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

    process = start(out, model, preexec_fn=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"error: can't write {out}/parts/part-")
    assert errors.endswith(f"; `chestct score run {out}` goes on\n")
    assert parts(out) == []
    finish(start(out, model))
    assert check(out).complete


def test_a_file_that_changes_between_plan_and_run_is_an_error_row(out: Path, model: Model) -> None:
    folder = out.parent / "in"
    (folder / "00003.png").write_bytes((folder / "00004.png").read_bytes())
    (folder / "00005.png").unlink()
    finish(start(out, model))
    errors = {row["file"]: row["error"] for row in table(out) if row["error"]}
    assert errors == {"00003.png": "file_changed", "00005.png": "file_missing", "broken.png": "undecodable_image"}
    assert check(out).complete


def test_a_run_with_another_model_is_refused(out: Path, model: Model, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(model.graph.read_bytes())
    model.card.model_copy(update={"licence": "another"}).write(other / "card.json")
    process = start(out, model._replace(graph=other / "model.onnx"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith(f"error: the plan is for the model {model.tag}, and {other} is chestct:")


def test_a_table_says_what_it_is_for_in_every_row(out: Path, model: Model) -> None:
    finish(start(out, model, "--shard", "0/38"))
    (part,) = parts(out)
    (batch,) = tables.read(part, 500)
    assert {row["disclaimer"] for row in batch} == {model.card.disclaimer}
    assert list(batch[0]) == list(rows.schema(model.card.classes).names)
