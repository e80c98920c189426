"""The memory budget: the bytes that it counts, and the request that it evicts."""

import time

import pytest

from serving.memory_budget import REQUEST_BYTES, STALL_SECONDS, MemoryBudget
from serving.unavailable import Overloaded

MIB = 1 << 20


class Request:
    def __init__(self, stalled_for: float = 0) -> None:
        self.progressed = time.monotonic() - stalled_for
        self.evicted = False

    def evict(self) -> None:
        self.evicted = True


def holding(budget: MemoryBudget, size: int, stalled_for: float = 0) -> Request:
    request = Request(stalled_for)
    budget.reserve(request, size - REQUEST_BYTES)
    return request


def test_released_memory_can_be_reserved_again() -> None:
    budget = MemoryBudget(2 * MIB)
    for _ in range(5):
        one, other = holding(budget, MIB), holding(budget, MIB)
        assert budget.used == 2 * MIB
        budget.release(one)
        budget.release(other)
        budget.release(other)
        assert budget.used == 0


def test_each_request_counts_itself_beside_its_body() -> None:
    budget = MemoryBudget(10 * REQUEST_BYTES)
    for _ in range(10):
        request = Request()
        budget.reserve(request, 0)
        budget.keep(request)
    with pytest.raises(Overloaded):
        budget.reserve(Request(), 0)


def test_the_largest_incomplete_request_is_evicted_for_a_smaller_one() -> None:
    budget = MemoryBudget(10 * MIB)
    small, large = holding(budget, 3 * MIB), holding(budget, 6 * MIB)
    new = holding(budget, 2 * MIB)
    assert (small.evicted, large.evicted, new.evicted) == (False, True, False)
    assert budget.used == 5 * MIB


def test_a_request_as_large_as_the_largest_is_refused() -> None:
    budget = MemoryBudget(10 * MIB)
    one, other = holding(budget, 5 * MIB), holding(budget, 5 * MIB)
    with pytest.raises(Overloaded, match="memory"):
        holding(budget, 5 * MIB)
    assert (one.evicted, other.evicted, budget.used) == (False, False, 10 * MIB)


def test_a_growing_request_counts_with_all_its_bytes() -> None:
    budget = MemoryBudget(10 * MIB)
    growing, other = holding(budget, 5 * MIB), holding(budget, 5 * MIB)
    with pytest.raises(Overloaded):
        budget.reserve(growing, MIB)
    assert not other.evicted


def test_a_complete_request_is_not_evicted() -> None:
    budget = MemoryBudget(10 * MIB)
    whole = holding(budget, 10 * MIB)
    budget.keep(whole)
    with pytest.raises(Overloaded):
        holding(budget, MIB)
    assert not whole.evicted


def test_stalled_requests_are_evicted_first_the_longest_stalled_ahead() -> None:
    budget = MemoryBudget(10 * MIB)
    large = holding(budget, 7 * MIB)
    stalled = [holding(budget, MIB, stalled_for=STALL_SECONDS + seconds) for seconds in (2, 3, 1)]
    new = holding(budget, 2 * MIB)
    assert [request.evicted for request in (*stalled, large, new)] == [True, True, False, False, False]


def test_stalled_small_requests_do_not_keep_others_out() -> None:
    budget = MemoryBudget(2 * MIB)
    unfinished = [holding(budget, REQUEST_BYTES, stalled_for=2 * STALL_SECONDS) for _ in range(32)]
    good = [holding(budget, MIB), holding(budget, MIB)]
    assert all(request.evicted for request in unfinished)
    assert not any(request.evicted for request in good)


def test_a_request_larger_than_the_budget_takes_all_of_it() -> None:
    budget = MemoryBudget(MIB)
    large = holding(budget, 5 * MIB)
    assert budget.used == MIB
    budget.release(large)
    assert budget.used == 0
