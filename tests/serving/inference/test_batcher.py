"""The queue before the engine: how batches grow, who gets which answer, and how it ends."""

import asyncio
import threading
import time

import pytest

from serving.inference.batcher import Batcher
from serving.inference.batches import EngineFailed
from serving.telemetry import gathering_histogram, metrics
from serving.unavailable import Closed, Overloaded
from tests.serving.inference.gate import Gate, enqueue, image, occupy


def test_an_idle_engine_takes_a_single_image_without_a_timer(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []

    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=8, queue_size=8)
        monkeypatch.setattr(gathering_histogram, "_write_later", lambda: None)  # the metrics' own timer
        monkeypatch.setattr(asyncio.get_running_loop(), "call_at", lambda when, *_, **__: timers.append(when))
        await batcher.score(image(1))
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[1]]
    assert timers == []


def test_while_the_engine_is_busy_the_next_batch_grows_up_to_the_largest(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=64)
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, *range(1, 8))
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(("quiet_seconds", "expected"), [(0, [1, 6]), (300, [1])])
def test_an_image_may_use_all_cores_if_it_is_alone_and_the_last_ones_were(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, quiet_seconds: float, expected: list[int]
) -> None:
    monkeypatch.setattr("serving.inference.batcher.QUIET_SECONDS", quiet_seconds)

    async def run() -> None:
        batcher = Batcher(gate.infer, gate.infer_alone, largest_batch=2, queue_size=8)
        await batcher.score(image(1))
        await asyncio.gather(*await enqueue(batcher, 2, 3))
        await asyncio.gather(*await enqueue(batcher, 4, 5, 6))  # 6 is the last of them, and no other is left
        decoded = batcher.reserve()
        await batcher.score(image(7))
        batcher.leave(decoded)
        await batcher.lend([image(8)])
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[1], [2, 3], [4, 5], [6], [7], [8]]
    assert gate.alone == expected


def test_an_image_that_comes_while_another_has_all_cores_ends_this_for_the_next_ones(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.inference.batcher.QUIET_SECONDS", 300)

    async def run() -> None:
        batcher = Batcher(gate.infer, gate.infer_alone, largest_batch=2, queue_size=8)
        await batcher.score(image(1))
        await batcher.score(image(2))
        third = await occupy(batcher, gate, 3)
        (fourth,) = await enqueue(batcher, 4)
        gate.open.set()
        await asyncio.gather(third, fourth)
        await batcher.score(image(5))
        await batcher.close()

    asyncio.run(run())
    assert gate.alone == [1, 2, 3]


def test_under_load_each_image_gets_its_own_answer(gate: Gate) -> None:
    async def client(batcher: Batcher, level: int) -> bool:
        await asyncio.sleep(level % 7 / 1000)
        score = await batcher.score(image(level))
        return (score.ood_score, score.chest_ct) == (
            level,
            pytest.approx(level / 100),
        ) and score.probabilities.tolist() == [level] * 4

    async def run() -> list[bool]:
        batcher = Batcher(gate.infer, largest_batch=8, queue_size=256)
        right = await asyncio.gather(*(client(batcher, level) for level in range(200)))
        await batcher.close()
        return right

    assert all(asyncio.run(run()))
    assert len(gate.batches) < 200
    assert len(gate.threads) == 1


def test_an_error_in_the_engine_fails_its_batch_alone(gate: Gate) -> None:
    gate.poison = 13

    async def run() -> list[object]:
        batcher = Batcher(gate.infer, largest_batch=2, queue_size=64)
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, 13, 1, 2, 3)
        gate.open.set()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert gate.batches == [[0], [13, 1], [2, 3]]
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [False, True, True, False, False]
    assert "batch of 2: poisoned" in str(outcomes[1])


def test_too_few_scores_fail_the_batch_instead_of_shifting_answers(gate: Gate) -> None:
    gate.short = True

    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=4)
        with pytest.raises(EngineFailed):
            await batcher.score(image(1))
        await batcher.close()

    asyncio.run(run())


def test_a_cancelled_image_never_reaches_the_engine(gate: Gate) -> None:
    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=3)
        first = await occupy(batcher, gate)
        second, third, fourth = await enqueue(batcher, 1, 2, 3)
        with pytest.raises(Overloaded):
            batcher.check_room()
        third.cancel()
        await asyncio.sleep(0)
        batcher.check_room()  # its place is free before the engine
        gate.open.set()
        await asyncio.gather(first, second, fourth)
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [[0], [1, 3]]


def test_an_image_cancelled_in_the_engine_leaves_the_others_their_answers(gate: Gate) -> None:
    async def run() -> object:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=64)
        first = await occupy(batcher, gate, 9)
        first.cancel()
        (other,) = await enqueue(batcher, 1)
        gate.open.set()
        score = await other
        await batcher.close()
        return score.ood_score  # type: ignore[attr-defined]

    assert asyncio.run(run()) == 1


def test_decoded_images_reach_the_engine_while_the_event_loop_is_busy(gate: Gate) -> None:
    async def run() -> list[object]:
        batcher = Batcher(gate.infer, largest_batch=2, queue_size=8)
        first = await occupy(batcher, gate)
        places = [batcher.reserve() for _ in range(3)]
        decoder = threading.Thread(target=lambda: [batcher.fill(place, image(8)) for place in places])
        decoder.start()
        decoder.join()
        gate.open.set()
        while len(gate.batches) < 3:  # blocks the loop
            time.sleep(0.001)
        scores = await asyncio.gather(first, *map(batcher.wait, places))
        await batcher.close()
        return [score.ood_score for score in scores]  # type: ignore[attr-defined]

    assert asyncio.run(run()) == [0, 8, 8, 8]
    assert gate.batches == [[0], [8, 8], [8]]


def test_closing_finishes_waiting_images_and_accepts_no_more(gate: Gate) -> None:
    async def run() -> list[object]:
        batcher = Batcher(gate.infer, largest_batch=1, queue_size=8)
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, 1, 2)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await batcher.score(image(3))
        gate.open.set()
        scores = await asyncio.gather(first, *others)
        await closing
        return scores

    assert len(asyncio.run(run())) == 3
    assert gate.batches == [[0], [1], [2]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine")]


def test_each_batch_is_measured(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    seconds: list[float] = []
    waited: list[float] = []
    for metric, values in (
        (metrics.BATCH_SIZE, sizes),
        (metrics.INFER_SECONDS, seconds),
        (metrics.QUEUE_SECONDS, waited),
    ):
        monkeypatch.setattr(metric, "observe", values.append)

    async def run() -> None:
        batcher = Batcher(gate.infer, largest_batch=4, queue_size=8)
        first = await occupy(batcher, gate)
        others = await enqueue(batcher, 1, 2)
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(run())
    assert sizes == [1, 2]
    assert seconds[0] >= 0.05
    assert min(waited[1:]) >= 0.05
