"""Which workers hang, and which deaths end the service."""

import signal
from collections.abc import Iterator

from serving.run_folder import CANNOT_START
from serving.supervision.watch import DEATHS, MINUTE, Watch


def looks(watch: Watch, beats: Iterator[float], pid: int = 7) -> list[list[int]]:
    return [[hung for hung, _ in watch.look({pid: beat} if beat else {}, [pid])] for beat in beats]


def test_a_worker_without_a_new_beat_hangs_and_one_with_some_does_not() -> None:
    watch = Watch(hang_seconds=3)
    watch.start(7, place=1)
    assert looks(watch, iter([1, 2, 2, 2, 3, 3, 3])) == [[]] * 7
    assert looks(watch, iter([3, 3])) == [[7], []], "which is told once"
    assert watch.end(7, -signal.SIGKILL).reason == "it hung and was killed"


def test_a_worker_that_is_not_ready_yet_has_more_time() -> None:
    watch = Watch(hang_seconds=2, start_seconds=5)
    watch.start(7, place=1)
    assert looks(watch, iter([0, 0, 0, 0, 0])) == [[], [], [], [], [7]]


def test_a_process_id_that_is_no_worker_any_more_is_left_alone() -> None:
    watch = Watch(hang_seconds=2)
    watch.start(7, place=1)
    looks(watch, iter([1]))
    assert watch.look({7: 1.0}, alive=[]) == []
    assert [watch.look({7: 1.0}, alive=[7]) for _ in range(5)] == [[]] * 5


def test_deaths_in_a_row_in_one_place_are_fatal() -> None:
    watch = Watch(hang_seconds=20)
    fatal = []
    for pid in range(2 * DEATHS):
        watch.start(pid, place=pid % 2)
        fatal.append(watch.end(pid, -signal.SIGKILL).fatal)
    assert fatal == [False] * (2 * DEATHS - 2) + [True, True]


def test_a_worker_that_lived_for_a_while_ends_the_row() -> None:
    watch = Watch(hang_seconds=2 * MINUTE)
    for pid in range(3 * DEATHS):
        watch.start(pid, place=1)
        if pid % (DEATHS - 1) == 0:
            looks(watch, iter([1.0] * (MINUTE + 1)), pid)
        assert not watch.end(pid, 1).fatal


def test_a_failed_start_is_fatal_at_once_unless_another_worker_answers() -> None:
    watch = Watch(hang_seconds=20)
    watch.start(7, place=1)
    watch.start(8, place=2)
    assert watch.end(7, CANNOT_START).fatal
    looks(watch, iter([1.0]), 8)
    watch.start(9, place=1)
    assert not watch.end(9, CANNOT_START).fatal


def test_the_reason_of_a_death_says_what_to_look_for() -> None:
    watch = Watch(hang_seconds=20)
    assert watch.end(1, 3).reason == "exit code 3"
    assert "memory" in watch.end(1, -signal.SIGKILL).reason
    assert "full" in watch.end(1, -signal.SIGBUS).reason
    assert watch.end(1, -signal.SIGSEGV).reason == "killed by SIGSEGV"
    assert "unknown" in watch.end(2, None).reason
