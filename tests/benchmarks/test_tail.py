"""The comparison of tails: turns, and pairs in which the machine wavered."""

import itertools

import pytest

from benchmarks import tail
from benchmarks.wrk import Sample
from load_tests.verdict import LoadError


def test_service_and_loop_take_turns_in_alternating_order() -> None:
    turns: list[str] = []

    def measure(name: str, p99: float) -> Sample:
        turns.append(name)
        return Sample(100, 5, p99)

    found = tail.compare(lambda: measure("service", 30), lambda: measure("loop", 20), lambda: 100, pairs=3)
    assert turns == ["service", "loop", "loop", "service", "service", "loop"]
    assert [(ours.p99, bare.p99) for ours, bare in zip(found.service, found.loop, strict=True)] == [(30, 20)] * 3
    assert found.wavered == 0


def test_a_pair_in_which_the_machine_wavered_does_not_count() -> None:
    speeds = iter([100.0, 100, 80, 80, 92, 100, 100, 100, 100])  # the second pair and the fourth: -20 %, +15 %
    numbers = iter(range(1, 9))
    found = tail.compare(lambda: Sample(1, 1, next(numbers)), lambda: Sample(1, 1, 1), lambda: next(speeds), pairs=8)
    assert found.wavered == 1
    assert [sample.p99 for sample in found.service] == [1, 3, 4, 5, 6, 7, 8]
    assert len(found.loop) == len(found.service)


def test_too_few_pairs_are_no_result() -> None:
    speeds = itertools.cycle([100.0, 50])
    with pytest.raises(LoadError, match="wavered by more than 15% in 9 of 9 pairs"):
        tail.compare(lambda: Sample(1, 1, 1), lambda: Sample(1, 1, 1), lambda: next(speeds), pairs=9)
