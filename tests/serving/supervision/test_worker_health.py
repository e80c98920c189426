"""Rules for hung workers, and for deaths that end the service."""

import signal
from collections.abc import Iterator

from serving.run_folder import CANNOT_START
from serving.supervision.worker_health import LIFE_SECONDS, MAX_DEATHS, WorkerHealth


def check(health: WorkerHealth, beats: Iterator[float], pid: int = 7) -> list[list[int]]:
    return [[hung for hung, _ in health.find_hung({pid: beat} if beat else {}, [pid])] for beat in beats]


def test_a_worker_without_a_new_beat_hangs_and_one_with_some_does_not() -> None:
    health = WorkerHealth(hang_seconds=3)
    health.add(7, place=1)
    assert check(health, iter([1, 2, 2, 2, 3, 3, 3])) == [[]] * 7
    assert check(health, iter([3, 3])) == [[7], []], "which is reported once"
    assert health.record_death(7, -signal.SIGKILL).reason == "it hung and was killed"


def test_a_worker_that_is_not_ready_yet_has_more_time() -> None:
    health = WorkerHealth(hang_seconds=2, start_seconds=5)
    health.add(7, place=1)
    assert check(health, iter([0, 0, 0, 0, 0])) == [[], [], [], [], [7]]


def test_the_process_id_of_a_former_worker_is_left_alone() -> None:
    health = WorkerHealth(hang_seconds=2)
    health.add(7, place=1)
    check(health, iter([1]))
    assert health.find_hung({7: 1.0}, alive=[]) == []
    assert [health.find_hung({7: 1.0}, alive=[7]) for _ in range(5)] == [[]] * 5


def test_deaths_in_a_row_in_one_place_are_fatal() -> None:
    health = WorkerHealth(hang_seconds=20)
    fatal = []
    for pid in range(2 * MAX_DEATHS):
        health.add(pid, place=pid % 2)
        fatal.append(health.record_death(pid, -signal.SIGKILL).fatal)
    assert fatal == [False] * (2 * MAX_DEATHS - 2) + [True, True]


def test_a_long_life_resets_the_count_of_deaths() -> None:
    health = WorkerHealth(hang_seconds=2 * LIFE_SECONDS)
    for pid in range(3 * MAX_DEATHS):
        health.add(pid, place=1)
        if pid % (MAX_DEATHS - 1) == 0:
            check(health, iter([1.0] * (LIFE_SECONDS + 1)), pid)
        assert not health.record_death(pid, 1).fatal


def test_a_failed_start_is_fatal_at_once_unless_another_worker_answers() -> None:
    health = WorkerHealth(hang_seconds=20)
    health.add(7, place=1)
    health.add(8, place=2)
    assert health.record_death(7, CANNOT_START).fatal
    check(health, iter([1.0]), 8)
    health.add(9, place=1)
    assert not health.record_death(9, CANNOT_START).fatal


def test_the_reason_of_a_death_says_what_to_look_for() -> None:
    health = WorkerHealth(hang_seconds=20)
    assert health.record_death(1, 3).reason == "exit code 3"
    assert "memory" in health.record_death(1, -signal.SIGKILL).reason
    assert "full" in health.record_death(1, -signal.SIGBUS).reason
    assert health.record_death(1, -signal.SIGSEGV).reason == "killed by SIGSEGV"
    assert "unknown" in health.record_death(2, None).reason
