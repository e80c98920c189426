"""Rules for hung workers, and for deaths that end the service."""

import signal
from collections.abc import Iterator

import pytest

from serving.run_folder import CANNOT_START
from serving.supervision.worker_health import LIFE_SECONDS, WorkerHealth

MAX_DEATHS = 5


def check(health: WorkerHealth, beats: Iterator[float], pid: int = 7) -> list[list[int]]:
    return [[hung for hung, _ in health.find_hung({pid: beat} if beat else {}, [pid])] for beat in beats]


def test_a_worker_without_a_new_beat_hangs_and_one_with_some_does_not() -> None:
    health = WorkerHealth(hang_seconds=3, max_deaths=MAX_DEATHS)
    health.add(7, place=1)
    assert check(health, iter([1, 2, 2, 2, 3, 3, 3])) == [[]] * 7
    assert check(health, iter([3, 3])) == [[7], []], "which is reported once"
    assert health.record_death(7, -signal.SIGKILL)[:2] == ("it hung and was killed", "hung")


def test_a_worker_that_is_not_ready_yet_has_more_time() -> None:
    health = WorkerHealth(hang_seconds=2, max_deaths=MAX_DEATHS, start_seconds=5)
    health.add(7, place=1)
    assert check(health, iter([0, 0, 0, 0, 0])) == [[], [], [], [], [7]]
    assert health.record_death(7, -signal.SIGKILL).cause == "not_ready"


def test_the_process_id_of_a_former_worker_is_left_alone() -> None:
    health = WorkerHealth(hang_seconds=2, max_deaths=MAX_DEATHS)
    health.add(7, place=1)
    check(health, iter([1]))
    assert health.find_hung({7: 1.0}, alive=[]) == []
    assert [health.find_hung({7: 1.0}, alive=[7]) for _ in range(5)] == [[]] * 5


def test_deaths_in_a_row_in_one_place_are_fatal() -> None:
    health = WorkerHealth(hang_seconds=20, max_deaths=MAX_DEATHS)
    fatal = []
    for pid in range(2 * MAX_DEATHS):
        health.add(pid, place=pid % 2)
        fatal.append(health.record_death(pid, -signal.SIGKILL).fatal)
    assert fatal == [""] * (2 * MAX_DEATHS - 2) + ["5 workers in a row have died within 60 s of being ready"] * 2


def test_deaths_are_fatal_also_if_each_start_takes_longer_than_a_minute() -> None:
    health = WorkerHealth(hang_seconds=20, max_deaths=2)
    for pid, fatal in ((1, False), (2, True)):
        health.add(pid, place=1)
        check(health, iter([0.0] * (LIFE_SECONDS + 20) + [1.0, 2.0]), pid)
        assert bool(health.record_death(pid, -signal.SIGKILL).fatal) is fatal


def test_a_long_life_resets_the_count_of_deaths() -> None:
    health = WorkerHealth(hang_seconds=2 * LIFE_SECONDS, max_deaths=MAX_DEATHS)
    for pid in range(3 * MAX_DEATHS):
        health.add(pid, place=1)
        if pid % (MAX_DEATHS - 1) == 0:
            check(health, iter([1.0] * (LIFE_SECONDS + 2)), pid)
        assert not health.record_death(pid, 1).fatal


def test_a_failed_start_is_fatal_at_once_unless_another_worker_answers() -> None:
    health = WorkerHealth(hang_seconds=20, max_deaths=MAX_DEATHS)
    health.add(7, place=1)
    health.add(8, place=2)
    assert health.record_death(7, CANNOT_START).fatal == "no worker can start"
    check(health, iter([1.0]), 8)
    health.add(9, place=1)
    assert not health.record_death(9, CANNOT_START).fatal


@pytest.mark.parametrize(
    ("code", "full", "cause", "words"),
    [
        (3, "", "exited", "exit code 3; look at the log above"),
        (3, "the memory", "exited", "exit code 3"),
        (None, "", "exited", "its exit code is unknown"),
        (-signal.SIGKILL, "", "killed", "killed by SIGKILL: by somebody, or by the kernel when the memory was used up"),
        (
            -signal.SIGKILL,
            "the memory limit of 400 MiB",
            "out_of_memory",
            "killed by the kernel because the memory limit of 400 MiB was used up; raise the limit or lower "
            "CHESTCT_WORKERS",
        ),
        (-signal.SIGBUS, "", "crashed", "killed by SIGBUS: a file that it maps has lost its blocks; look for a full"),
        (-signal.SIGSEGV, "", "crashed", "killed by SIGSEGV; look at the log above"),
    ],
)
def test_the_reason_of_a_death_says_what_to_look_for(code: int | None, full: str, cause: str, words: str) -> None:
    death = WorkerHealth(hang_seconds=20, max_deaths=MAX_DEATHS).record_death(1, code, full)
    assert death.cause == cause
    assert death.reason.startswith(words)
