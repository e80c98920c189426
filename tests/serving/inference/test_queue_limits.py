"""Which images the queue refuses, and which of them it forgets."""

import asyncio
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from chestct.engine import Scores
from serving.inference.batcher import Batcher
from serving.inference.batches import Score
from serving.unavailable import Closed, Overloaded
from tests.serving.inference.gate import Gate, enqueue, image, occupy


def test_a_full_queue_gives_the_time_to_retry(gate: Gate) -> None:
    async def run() -> tuple[Overloaded, float]:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=3)
        begun = time.monotonic()
        task = await occupy(batcher, gate)
        await asyncio.sleep(0.05)
        gate.open.set()
        await task  # now the seconds per image are known: 50 ms or more
        took = time.monotonic() - begun
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, 1, 2, 3)
        with pytest.raises(Overloaded) as caught:
            await batcher.score(image(4))
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()
        return caught.value, took

    error, took = asyncio.run(run())
    assert 3 * 0.05 <= error.retry_after <= 3 * took
    assert gate.batches == [[0], [0], [1], [2], [3]]


def test_an_image_that_would_miss_its_deadline_is_refused_at_once(gate: Gate) -> None:
    def infer(pixels: NDArray[np.uint8]) -> Scores:
        time.sleep(0.01)
        return gate.infer(pixels)

    async def run() -> None:
        batcher = Batcher(infer, largest_batch=1, queue_size=64)
        for _ in range(32):  # now the seconds per image are known: 10 ms or more
            await batcher.score(image(0))
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, *range(1, 5))
        batcher.check_room(time.monotonic() + 300)
        with pytest.raises(Overloaded) as caught:
            await batcher.score(image(9), time.monotonic() + 0.06)
        assert caught.value.retry_after >= 0.04
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(run())
    assert [9] not in gate.batches


def test_a_pause_of_the_process_is_smoothed_out_of_the_seconds_per_image(gate: Gate) -> None:
    async def run() -> float:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=8)
        for _ in range(31):
            await batcher.score(image(1))
        waiting = asyncio.ensure_future(batcher.score(image(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.5)  # the pause
        await waiting
        for _ in range(8):
            batcher.reserve()
        with pytest.raises(Overloaded) as caught:
            batcher.check_room()
        await batcher.close()
        return caught.value.retry_after

    assert asyncio.run(run()) < 0.5 * 8 / 2  # by the pause alone it would be 8 times 0.5


def test_an_image_whose_deadline_passed_never_reaches_the_engine(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=8)
        first = await occupy(batcher, gate)
        late = asyncio.create_task(batcher.score(image(1), time.monotonic() + 0.05))
        (other,) = await enqueue(batcher, 2)
        await asyncio.sleep(0.1)
        gate.open.set()
        with pytest.raises(TimeoutError):
            await late
        await asyncio.gather(first, other)
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[0], [2]]


def test_an_image_that_is_cancelled_as_its_deadline_passes_does_not_stop_the_queue(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=8)
        first = await occupy(batcher, gate)
        second = asyncio.create_task(batcher.score(image(1), time.monotonic() + 0.02))
        await asyncio.sleep(0.05)
        gate.open.set()
        time.sleep(0.1)  # block the loop, so that the engine's answer and the cancellation come in one turn
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        async with asyncio.timeout(300):
            await first
            await batcher.score(image(2))
            await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[0], [2]]


def test_images_being_decoded_count_against_the_queue(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=3)
        places = [batcher.reserve() for _ in range(2)]
        batcher.check_room()
        places.append(batcher.reserve())
        with pytest.raises(Overloaded):
            batcher.check_room()
        batcher.leave(places.pop())
        batcher.check_room()
        waiting = asyncio.create_task(batcher.wait(places.pop()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        assert batcher.decoding == 1
        await batcher.close()

    asyncio.run(run())


def test_an_image_with_a_place_is_not_refused_for_later_ones(gate: Gate) -> None:
    async def run() -> tuple[Score | None, Score]:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=4)
        place, *others = [batcher.reserve() for _ in range(5)]  # the others arrived while this one was decoded
        with pytest.raises(Overloaded):
            await batcher.score(image(1))
        await asyncio.to_thread(batcher.fill, place, image(2))
        scores = await batcher.wait(place), await batcher.score(image(3), admitted=True)
        await batcher.close()
        with pytest.raises(Closed):
            await batcher.score(image(4), admitted=True)
        batcher.fill(others[0], image(5))
        with pytest.raises(Closed):
            await batcher.wait(others[0])
        return scores

    first, second = asyncio.run(run())
    assert first is not None
    assert (first.ood_score, second.ood_score) == (2, 3)
    assert gate.batches == [[2], [3]]


def test_who_waits_for_an_image_that_leaves_its_place_gets_nothing_or_the_error(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=4)
        left, failed, cancelled = (batcher.reserve() for _ in range(3))
        await asyncio.to_thread(batcher.leave, left)
        await asyncio.to_thread(batcher.leave, failed, ValueError("spoilt"))
        assert await batcher.wait(left) is None
        with pytest.raises(ValueError, match="spoilt"):
            await batcher.wait(failed)
        waiting = asyncio.create_task(batcher.wait(cancelled))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        batcher.fill(cancelled, image(1))
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == []
