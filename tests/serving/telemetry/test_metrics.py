"""The metrics of all workers."""

import subprocess
import sys
from pathlib import Path

import pytest

from chestct.card import FactReference, Reference
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


def test_the_reference_is_shown_by_bin_and_facts_with_other_bins_are_left_out() -> None:
    body = FactReference(
        edges=(0.7, 0.8, 0.88, 0.93, 0.96, 0.98), shares=(0, 0.1, 0.2, 0.3, 0.2, 0.15, 0.05), clumping=0
    )
    other = FactReference(edges=(1, 2), shares=(0.5, 0.25, 0.25), clumping=0)
    metrics.REFERENCE_SHARE.clear()  # another test of this process may have shown a model's
    metrics.show_reference(
        Reference(images=9, same_scan=0, facts={"input_body": body, "input_air": other, "new": other})
    )
    (family,) = metrics.REFERENCE_SHARE.collect()
    assert [(*sample.labels.values(), sample.value) for sample in family.samples] == [
        ("input_body", "-Inf", "0.7", 0),
        ("input_body", "0.7", "0.8", 0.1),
        ("input_body", "0.8", "0.88", 0.2),
        ("input_body", "0.88", "0.93", 0.3),
        ("input_body", "0.93", "0.96", 0.2),
        ("input_body", "0.96", "0.98", 0.15),
        ("input_body", "0.98", "+Inf", 0.05),
    ]
