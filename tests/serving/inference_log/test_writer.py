"""The log of one worker, in a real folder and in a real bucket."""

import re
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestct import tables
from chestct.buckets import Store
from chestct.file_errors import CannotGoOn
from chestct.image import Facts
from chestct.prediction import decide
from serving.inference_log import writer
from serving.inference_log.writer import InferenceLog
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from tests.graphs import plain_facts, tiny_card
from tests.waiting import wait_until

CARD = tiny_card()
FACTS: Facts = plain_facts()
NAME = re.compile(r"date=\d{4}-\d\d-\d\d/\d{8}T\d{6}\.\d{6}Z-[\w.-]+-\d+-\d+\.parquet")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_WAKE_SECONDS", 0.01)
    monkeypatch.setattr(writer, "_PAUSE_SECONDS", 0.05)


@contextmanager
def opened(place: Path | str, **settings: Any) -> Iterator[InferenceLog]:
    log = InferenceLog(str(place), CARD, Settings(**settings))
    try:
        yield log
    finally:
        log.close()


def note(log: InferenceLog, number: int, heatmaps: dict[str, str] | None = None) -> None:
    scores = (np.array([0.1, 0.2, 0.6, 0.1], np.float32), 0.1, 0.9)
    prediction = decide(CARD, *scores, FACTS, request_id=f"r{number}", model="chestct:a", heatmaps=heatmaps)
    log.note(RequestRecord(f"r{number}"), number, f"{number:064}", FACTS, prediction)


def read(content: Path | bytes) -> list[str]:
    """The request ids of a part."""
    return [row["request_id"] for rows in tables.read(content, 1000) for row in rows]


def parts(place: Path) -> list[Path]:
    return sorted(place.glob("*/*.parquet"))


def dropped() -> float:
    return metrics.LOG_ROWS_DROPPED._value.get()  # type: ignore[no-any-return]


def written() -> float:
    return metrics.LOG_ROWS._value.get()  # type: ignore[no-any-return]


def test_closing_writes_every_row_once_into_the_folder_of_its_day(tmp_path: Path) -> None:
    before = written()
    with opened(tmp_path / "new" / "log") as log:
        for number in range(50):
            note(log, number)
    (part,) = parts(tmp_path / "new" / "log")
    assert NAME.fullmatch(part.relative_to(tmp_path / "new" / "log").as_posix())
    assert read(part) == [f"r{number}" for number in range(50)]
    assert written() - before == 50


def test_a_part_is_closed_after_its_seconds_and_when_it_is_large(tmp_path: Path) -> None:
    with opened(tmp_path / "timed", inference_log_seconds=1) as log:
        note(log, 1)
        wait_until(lambda: parts(tmp_path / "timed"), "a part")
    with opened(tmp_path / "large", inference_log_seconds=3600, inference_log_rows=20) as log:
        for number in range(10):
            note(log, number)
        wait_until(lambda: parts(tmp_path / "large"), "a part")
    assert [len(read(part)) for part in parts(tmp_path / "large")] == [10]


def test_two_days_are_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1_700_006_399.0, 1_700_006_400.0, 1_700_006_401.0))
    with opened(tmp_path) as log:
        monkeypatch.setattr(writer.time, "time", lambda: next(times))
        for number in range(3):
            note(log, number)
        monkeypatch.undo()
    found = {part.parent.name: read(part) for part in parts(tmp_path)}
    assert found == {"date=2023-11-14": ["r0"], "date=2023-11-15": ["r1", "r2"]}


def test_heat_maps_are_not_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        note(log, 1, {"normal": "iVBORheatmap"})
        assert log._waiting[0].prediction.heatmaps is None
    assert b"heatmap" not in parts(tmp_path)[0].read_bytes()


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_WAKE_SECONDS", 3600)  # the thread does not look before the end
    before = dropped()
    with opened(tmp_path, inference_log_rows=5) as log:
        for number in range(8):
            note(log, number)
        assert dropped() - before == 3
        monkeypatch.setattr(writer, "_WAKE_SECONDS", 0.01)
    assert read(parts(tmp_path)[0]) == [f"r{number}" for number in range(5)]
    assert dropped() - before == 3


def test_rows_wait_while_the_folder_fails_and_the_log_says_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, aside = tmp_path / "log", tmp_path / "aside"
    before = dropped()
    with opened(place, inference_log_rows=6, inference_log_seconds=1) as log:
        place.rename(aside)
        place.write_text("in the way")
        for number in range(3):
            note(log, number)
        wait_until(lambda: "some may be dropped" in caplog.text, "a line about the failure")
        for number in range(3, 10):
            note(log, number)
        assert dropped() - before == 4
        tries = log._try_at
        wait_until(lambda: log._try_at > tries + 0.2, "more tries")
        assert caplog.text.count("some may be dropped") == 1
        place.unlink()
        aside.rename(place)
        wait_until(lambda: "is written again" in caplog.text, "a line about the recovery")
    assert sorted(name for part in parts(place) for name in read(part)) == [f"r{number}" for number in range(6)]
    assert [path for path in place.rglob("*") if path.is_file() and path.suffix != ".parquet"] == []


def test_a_part_that_is_cut_off_at_a_limit_of_its_size_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This fails like a full disk, in the middle of a part, and needs no disk of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path, inference_log_seconds=1) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            note(log, 1)
            wait_until(lambda: log._failing, "a failure")
            assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [read(part) for part in parts(tmp_path)] == [["r1"]]
    assert caplog.text.count("some may be dropped") == caplog.text.count("is written again") == 1


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place, before = tmp_path / "log", dropped()
    with opened(place, inference_log_seconds=1) as log:
        note(log, 0)
        wait_until(lambda: parts(place), "a part")
        shutil.rmtree(place)
        note(log, 1)
    assert [read(part) for part in parts(place)] == [["r1"]]
    assert caplog.text == ""
    assert dropped() == before


def test_what_can_t_be_written_at_the_end_is_counted_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "END_SECONDS", 0.2)
    before = dropped()
    with opened(tmp_path / "log") as log:
        (tmp_path / "log").rmdir()
        (tmp_path / "log").write_text("in the way")
        for number in range(3):
            note(log, number)
    assert dropped() - before == 3
    assert "loses its last 3 rows" in caplog.text


@pytest.mark.parametrize("place", ["file/log", "s3:///", "s4://bucket/a"])
def test_a_place_that_can_t_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(CannotGoOn):
        InferenceLog(place, CARD, Settings())


def test_two_workers_write_into_one_bucket(bucket: str) -> None:
    with opened(bucket) as first, opened(bucket) as second:
        for number in range(20):
            note((first, second)[number % 2], number)
    store = Store(bucket)
    names = [found.name for found in store.names()]
    assert len(names) == 2
    assert all(NAME.fullmatch(name) for name in names)
    rows = [row for name in names for row in read(store.get(name) or b"")]
    assert sorted(rows) == sorted(f"r{number}" for number in range(20))


def test_a_bucket_that_is_gone_for_a_while_loses_no_row(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(bucket, inference_log_seconds=1) as log:
        there = log._store
        log._store = Store("s3://absent/prefix", retry_for=timedelta(seconds=1))
        note(log, 1)
        wait_until(lambda: "some may be dropped" in caplog.text, "a line about the failure")
        note(log, 2)
        log._store = there
    store = Store(bucket)
    assert sorted(row for found in store.names() for row in read(store.get(found.name) or b"")) == ["r1", "r2"]


def test_a_lost_answer_of_the_bucket_makes_no_second_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[..., bool] = Store.put_if_absent
    lost = threading.Event()

    def put_and_lose_the_answer(store: Store, name: str, content: bytes) -> bool:
        stored = put(store, name, content)
        if not lost.is_set():
            lost.set()
            raise CannotGoOn("no answer")
        return stored

    monkeypatch.setattr(Store, "put_if_absent", put_and_lose_the_answer)
    with opened(tmp_path, inference_log_seconds=1) as log:
        note(log, 1)
        assert lost.wait(300)
    assert [read(part) for part in parts(tmp_path)] == [["r1"]]
