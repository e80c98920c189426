"""The worker alone, without a service and a PACS."""

import logging
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY

from dicom_node import spool as spools
from dicom_node.receive import check
from dicom_node.score import Scorer
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.worker import Worker
from tests.dicom_node.slices import ct_slice, written
from tests.small_disk import SmallDisk


def failures() -> float:
    """The failed attempts to score, as the metrics count them."""
    return REGISTRY.get_sample_value("dicom_node_failed_total", {"step": "score"}) or 0


def test_a_series_waits_while_the_disk_is_full_and_goes_on_later(
    settings: Callable[..., Settings],
    small_disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spools, "KEPT_FREE", -(10**9))  # as if others had used up what the slices left free
    own = settings(spool=small_disk.outside, service="http://127.0.0.1:1", give_up_seconds=0)
    spool = Spool(own.spool, own.max_spool_bytes)
    file = ct_slice()
    key, name = check(written(file), file.SOPInstanceUID)
    spool.take(key, name, written(file))
    worker = Worker(own, spool, Scorer(own), lambda files: None)
    before, failed = small_disk.files(), failures()
    small_disk.fill()
    with caplog.at_level(logging.WARNING, "dicom_node"):
        worker.attempt(key)
        worker.attempt(key)
    full = "the spool can't be read or written: No space left on device"
    assert [record.getMessage() for record in caplog.records] == [
        f"series {key} waits 1 s: {full}",
        f"series {key} waits 60 s: {full}; can't move it to the dead letters: No space left on device",
    ]
    assert (small_disk.files(), spool.dead_letters()) == (before, 0)
    small_disk.free()
    worker.attempt(key)  # it gets as far as the service, which is not there
    assert list(spools.dead_letters(own.spool)) == [(key, "the service can't be reached: ConnectionError")]
    assert failures() - failed == 3, "an attempt counts once, also the one that is given up"
