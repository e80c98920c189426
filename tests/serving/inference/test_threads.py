"""Threads for an event loop: results, exceptions, cancelled calls, and their end."""

import asyncio
import threading

import pytest

from serving.inference.threads import Threads
from tests.waiting import PATIENCE


def test_the_future_gets_the_result_or_the_exception() -> None:
    async def run() -> None:
        assert await threads.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)
        assert await threads.run(lambda: threading.current_thread().name) == "some_0"

    threads = Threads(1, "some")
    asyncio.run(run())
    threads.close()


def test_calls_run_in_turn_and_at_the_same_time_in_several_threads() -> None:
    async def run() -> None:
        both = threading.Barrier(2)
        await asyncio.gather(*(threads.run(both.wait, PATIENCE) for _ in range(2)))
        order: list[int] = []
        one = Threads(1, "one")
        await asyncio.gather(*(one.run(order.append, number) for number in range(5)))
        assert order == list(range(5))
        one.close()

    threads = Threads(2, "two")
    asyncio.run(run())
    threads.close()


def test_a_cancelled_call_is_not_made_and_a_running_one_is_finished_in_vain() -> None:
    async def run() -> None:
        gate, entered, made = threading.Event(), threading.Event(), list[int]()
        running = threads.run(lambda: entered.set() or gate.wait(PATIENCE))
        waiting = threads.run(made.append, 1)
        await asyncio.to_thread(entered.wait, PATIENCE)
        running.cancel()
        waiting.cancel()
        gate.set()
        assert await threads.run(lambda: 2) == 2
        assert made == []

    threads = Threads(1, "some")
    asyncio.run(run())
    threads.close()


def test_close_waits_for_the_calls_and_refuses_more() -> None:
    async def run() -> None:
        gate = threading.Event()
        running = threads.run(gate.wait, PATIENCE)
        closing = asyncio.create_task(asyncio.to_thread(threads.close))
        gate.set()
        assert await running
        await closing
        with pytest.raises(RuntimeError, match="ended"):
            threads.run(int)

    threads = Threads(1, "some")
    asyncio.run(run())


def test_a_loop_that_closed_meanwhile_does_not_end_the_thread() -> None:
    async def leave() -> None:
        threads.run(gate.wait, PATIENCE)

    async def ask() -> int:
        return await threads.run(lambda: 1)

    threads, gate = Threads(1, "some"), threading.Event()
    asyncio.run(leave())
    gate.set()
    assert asyncio.run(ask()) == 1
    threads.close()


def test_a_started_function_runs_in_turn_and_from_any_thread() -> None:
    threads, order = Threads(1, "some"), list[str]()
    threads.start(lambda: order.append(threading.current_thread().name))
    starter = threading.Thread(target=lambda: threads.start(lambda: order.append("second")))
    starter.start()
    starter.join()
    threads.close()
    assert order == ["some_0", "second"]
    with pytest.raises(RuntimeError, match="ended"):
        threads.start(int)
