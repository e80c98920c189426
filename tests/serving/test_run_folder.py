"""Each run has its own folder, and a full disk is an error instead of a crash."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from serving import run_folder
from tests.server import ROOT

HOLDER = """
import pathlib, sys
from serving import run_folder
run_folder._MEMORY = pathlib.Path(sys.argv[1])
print(run_folder.create(), flush=True)
sys.stdin.read()
"""
FULL = """
import resource, sys
from pathlib import Path
from serving import run_folder
from serving.worker_states import WorkerStates
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # as a file system with no more room: no block, but for a file
try:
    WorkerStates(64).open(Path(sys.argv[1]) / "states")
except OSError as error:
    print(error)
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without shared memory, so that runs are made in the test's folder."""
    monkeypatch.setattr(run_folder, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    os.utime(folder, (1, 1))


def test_each_run_has_a_folder_of_its_own_for_its_user_alone(parent: Path) -> None:
    first, second = run_folder.create(), run_folder.create()
    assert first != second
    assert first.parent == second.parent == parent
    assert first.stat().st_mode & 0o777 == 0o700


def test_the_folder_of_a_killed_run_is_removed_and_that_of_a_live_one_kept(parent: Path) -> None:
    live, dead, strange = run_folder.create(), parent / "chestct-run-dead", parent / "another"
    for folder in (dead, strange):
        folder.mkdir()
        (folder / "states").touch()
    for folder in (live, dead, strange):
        age(folder)
    run_folder.create()
    assert live.is_dir()
    assert strange.is_dir()
    assert not dead.exists()


def test_the_kernel_unlocks_the_folder_of_a_run_that_is_killed(parent: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(parent)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().decode().strip())
        assert folder.parent == parent
        age(folder)
        run_folder.create()
        assert folder.is_dir()
        other.kill()
    run_folder.create()
    assert not folder.exists()


def test_a_full_disk_is_an_error_instead_of_a_crash(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert "no room for" in done.stdout
    assert str(tmp_path / "states") in done.stdout


def test_blocks_are_written_if_the_system_cannot_reserve_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    file = tmp_path / "states"
    file.write_bytes(b"one")
    for _ in range(2):
        run_folder.reserve_blocks(file, 100_000)
        assert file.read_bytes() == b"one" + bytes(99_997)


def test_the_metrics_of_a_process_have_their_blocks_before_they_are_written(tmp_path: Path) -> None:
    run_folder.reserve_metrics(tmp_path, 7)
    files = list(tmp_path.glob("*_7.db"))
    assert {file.name.removesuffix("_7.db") for file in files} == {
        "counter",
        "histogram",
        "gauge_livesum",
        "gauge_livemax",
        "gauge_livemin",
    }
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size >= 1 << 14
    counter = MmapedDict(str(tmp_path / "counter_7.db"))  # type: ignore[no-untyped-call]
    counter.write_value("key", 3.0, 0.0)  # type: ignore[no-untyped-call]
    counter.close()  # type: ignore[no-untyped-call]
    run_folder.trim_metrics(tmp_path, 7)
    assert (tmp_path / "counter_7.db").stat().st_size < 100
    values = list(MmapedDict.read_all_values_from_file(str(tmp_path / "counter_7.db")))  # type: ignore[no-untyped-call]
    assert [(key.strip(), value) for key, value, _, _ in values] == [("key", 3.0)]


def test_the_first_failure_to_start_is_reported_once(tmp_path: Path) -> None:
    code = "import pathlib, sys\nfrom serving import run_folder\n"
    code += "run_folder.exit_cannot_start(pathlib.Path(sys.argv[1]), OSError(1, sys.argv[2]))"
    for reason in ("first", "second"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), reason], cwd=ROOT, timeout=300, check=False)
        assert done.returncode == run_folder.CANNOT_START
    assert run_folder.pop_failure(tmp_path) == "PermissionError: [Errno 1] first"
    assert run_folder.pop_failure(tmp_path) == ""
