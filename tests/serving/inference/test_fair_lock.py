"""The order of turns at the guarded process, and the turns that are refused."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from serving.inference import fair_lock
from serving.inference.fair_lock import FairLock
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded


class Order:
    """Takes turns for requests, and notes their order."""

    def __init__(self, turns: FairLock) -> None:
        self.turns = turns
        self.taken: list[str] = []

    async def take(self, call: RequestRecord, seconds: float = 0) -> None:
        await self.turns.acquire(call)
        self.taken.append(call.request_id)
        await asyncio.sleep(seconds)
        self.turns.release()


def run(check: Callable[[Order], Awaitable[None]], most_waiting: int = 8) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(300):
            await check(Order(FairLock(most_waiting)))

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_the_order_of_the_requests() -> None:
    async def check(order: Order) -> None:
        await asyncio.gather(*(order.take(RequestRecord(name)) for name in "abcd"))
        assert order.taken == list("abcd")

    run(check)


def test_requests_of_many_slow_turns_delay_a_single_one_by_two_at_most() -> None:
    async def check(order: Order) -> None:
        tasks = [
            asyncio.create_task(order.take(batch, 0.02)) for batch in map(RequestRecord, "abcdef") for _ in range(4)
        ]
        while len(order.taken) < 16:
            await asyncio.sleep(0.001)
        before = len(order.taken)
        await order.take(RequestRecord("single"))
        assert order.taken.index("single") <= before + 1
        await asyncio.gather(*tasks)
        assert len(order.taken) == 25

    run(check)


def test_of_requests_of_many_turns_the_least_served_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fair_lock, "time", SimpleNamespace(monotonic=lambda: now))

    async def check(order: Order) -> None:
        slow, quick = RequestRecord("slow"), RequestRecord("quick")

        async def take(call: RequestRecord) -> None:
            nonlocal now
            await order.turns.acquire(call)
            order.taken.append(call.request_id)
            await asyncio.sleep(0)
            now += 5 if call is slow else 1
            order.turns.release()

        await asyncio.gather(*(take(call) for call in [slow] * 3 + [quick] * 3))
        assert order.taken == ["slow", "slow", "quick", "quick", "quick", "slow"]

    run(check)


def test_a_request_of_many_turns_is_not_starved_by_a_stream_of_others() -> None:
    async def check(order: Order) -> None:
        batch = [asyncio.create_task(order.take(call, 0.005)) for call in [RequestRecord("batch")] * 4]
        others = []
        while not all(task.done() for task in batch):
            others.append(asyncio.create_task(order.take(RequestRecord("other"), 0.005)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*others)
        assert order.taken.count("batch") == 4

    run(check, most_waiting=10_000)


def test_the_number_of_waiting_requests_is_bounded_but_not_that_of_their_turns() -> None:
    async def check(order: Order) -> None:
        first = RequestRecord("first")
        await order.turns.acquire(first)
        waiting = [asyncio.create_task(order.take(call)) for call in (RequestRecord("second"), RequestRecord("third"))]
        await settle()
        with pytest.raises(Overloaded):
            await order.take(RequestRecord("fourth"))
        again = asyncio.create_task(order.take(first))
        await settle()
        order.turns.release()
        await asyncio.gather(*waiting, again)
        assert sorted(order.taken) == ["first", "second", "third"]

    run(check, most_waiting=2)


def test_a_turn_that_would_come_too_late_is_refused_with_the_time_it_takes() -> None:
    async def check(order: Order) -> None:
        begun = time.monotonic()
        await order.take(RequestRecord("slow"), 0.2)
        took = time.monotonic() - begun
        await order.turns.acquire(RequestRecord("current"))
        with pytest.raises(Overloaded) as caught:
            await order.take(RequestRecord("hasty", deadline=time.monotonic() + 0.1))
        assert 0.19 < caught.value.retry_after <= took
        patient = asyncio.create_task(order.take(RequestRecord("patient", deadline=time.monotonic() + 600)))
        await settle()
        order.turns.release()
        await patient

    run(check)


@pytest.mark.parametrize("granted", [False, True], ids=["while it waits", "in the moment its turn comes"])
def test_a_cancelled_request_leaves_the_turns_to_others(granted: bool) -> None:
    async def check(order: Order) -> None:
        await order.turns.acquire(RequestRecord("current"))
        gone, stays = (asyncio.create_task(order.take(RequestRecord(name))) for name in ("gone", "stays"))
        await settle()
        if granted:
            order.turns.release()
        gone.cancel()
        await settle()
        if not granted:
            order.turns.release()
        await stays
        assert order.taken == ["stays"]
        assert not order.turns._used
        assert not order.turns._waiting

    run(check)


def test_a_request_that_is_cancelled_between_its_turns_is_forgotten() -> None:
    async def check(order: Order) -> None:
        batch = RequestRecord("batch")
        await order.turns.acquire(batch)
        second, third = (asyncio.create_task(order.turns.acquire(batch)) for _ in range(2))
        other = asyncio.create_task(order.turns.acquire(RequestRecord("other")))
        await settle()
        for turn in (second, other):
            order.turns.release()
            await turn
        third.cancel()
        order.turns.release()
        await settle()
        assert not order.turns._used

    run(check)


def test_a_closed_lock_refuses_waiting_and_new_requests() -> None:
    async def check(order: Order) -> None:
        await order.turns.acquire(RequestRecord("current"))
        waiting = asyncio.create_task(order.take(RequestRecord("waiting")))
        await settle()
        order.turns.close()
        for refused in (waiting, order.take(RequestRecord("late"))):
            with pytest.raises(Closed):
                await refused
        order.turns.release()
        assert order.taken == []

    run(check)
