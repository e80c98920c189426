"""The metrics of all workers."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.telemetry import metrics


def test_two_workers_may_remove_the_files_of_a_dead_worker_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait(300)
    file = tmp_path / f"gauge_livesum_{dead.pid}.db"
    file.touch()

    def removed_by_another(pid: int) -> None:
        assert pid == dead.pid
        file.unlink()
        raise FileNotFoundError(file)

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(metrics, "_FOLDER", tmp_path)
    monkeypatch.setattr(metrics, "mark_process_dead", removed_by_another)
    assert b"chestct_queue_depth" not in metrics.exposition()
    assert not file.exists()
