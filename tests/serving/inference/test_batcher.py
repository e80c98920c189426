import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from chestct.engine import Scores
from serving.inference.batcher import Batcher
from serving.inference.batches import EngineFailed, Score
from serving.telemetry import gathering_histogram, metrics
from serving.unavailable import Closed, Overloaded


class Gate:
    """An engine that answers an image with its grey level, `chest_ct` with a hundredth of it.

    A batch waits in it until `open` is set.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.poison: int | None = None
        self.short = False

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        levels = [int(level) for level in pixels[:, 0, 0, 0]]
        self.batches.append(levels)
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(300)
        if self.poison in levels:
            raise RuntimeError("poisoned")
        values = np.array(levels[:-1] if self.short else levels, np.float32)
        maps = np.zeros((len(values), 4, 2, 2), np.float32)
        return Scores(np.repeat(values[:, None], 4, 1), values, values / 100, maps)


def image(level: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 1), level, np.uint8)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def occupy(batcher: Batcher, gate: Gate, level: int = 0) -> asyncio.Task[object]:
    """Put an image into the engine and keep it there."""
    gate.open.clear()
    gate.entered.clear()
    task = asyncio.create_task(batcher.score(image(level)))
    assert await asyncio.to_thread(gate.entered.wait, 300)
    return task


async def enqueue(batcher: Batcher, *levels: int) -> list[asyncio.Task[object]]:
    tasks = [asyncio.create_task(batcher.score(image(level))) for level in levels]
    await asyncio.sleep(0)
    return tasks


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
    alone: list[int] = []

    def infer_alone(pixels: NDArray[np.uint8]) -> Scores:
        alone.append(int(pixels[0, 0, 0, 0]))
        return gate.infer(pixels)

    async def run() -> None:
        batcher = Batcher(gate.infer, infer_alone, largest_batch=2, queue_size=8)
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
    assert alone == expected


def test_an_image_that_comes_while_another_has_all_cores_ends_this_for_the_next_ones(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.inference.batcher.QUIET_SECONDS", 300)
    alone: list[int] = []

    def infer_alone(pixels: NDArray[np.uint8]) -> Scores:
        alone.append(int(pixels[0, 0, 0, 0]))
        return gate.infer(pixels)

    async def run() -> None:
        batcher = Batcher(gate.infer, infer_alone, largest_batch=2, queue_size=8)
        await batcher.score(image(1))
        await batcher.score(image(2))
        third = await occupy(batcher, gate, 3)
        (fourth,) = await enqueue(batcher, 4)
        gate.open.set()
        await asyncio.gather(third, fourth)
        await batcher.score(image(5))
        await batcher.close()

    asyncio.run(run())
    assert alone == [1, 2, 3]


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
