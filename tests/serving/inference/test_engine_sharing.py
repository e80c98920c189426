"""Workers lend each other their engines: exact scores, no lost batch, and no wait for a busy engine."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from serving.inference import engine_sharing
from serving.inference.batcher import Batcher
from serving.inference.batches import EngineFailed
from serving.inference.engine_sharing import EngineSharing
from serving.worker_states import WorkerStates
from tests.serving.inference.gate import Gate, enqueue, image, occupy

SHAPE = (4, 4, 1)
MAP = (4, 2, 2)


class Worker:
    """A worker's batcher and its engine sharing."""

    def __init__(self, folder: Path, number: int, gate: Gate, model: str = "model") -> None:
        self.gate = gate
        self.batcher = Batcher(gate.infer, largest_batch=2, queue_size=64)
        states = WorkerStates(2)
        states.join(folder / "states", number)
        self.lending = EngineSharing(states, lambda other: folder / f"{model}-{other}", self.batcher.lend, SHAPE, MAP)

    async def start(self) -> None:
        await self.lending.start()
        self.batcher.share(self.lending)

    async def stop(self) -> None:
        await self.batcher.close()
        await self.lending.stop()


@asynccontextmanager
async def two(folder: Path, models: tuple[str, str] = ("model", "model")) -> AsyncIterator[tuple[Worker, Worker]]:
    workers = [Worker(folder, number, Gate(), model) for number, model in enumerate(models, 1)]
    for worker in workers:
        await worker.start()
    try:
        yield workers[0], workers[1]
    finally:
        for worker in workers:
            worker.gate.open.set()
        for worker in workers:
            await worker.stop()


@asynccontextmanager
async def crowded(
    folder: Path, models: tuple[str, str] = ("model", "model")
) -> AsyncIterator[tuple[Worker, Worker, asyncio.Task[object]]]:
    """Two workers, and the score of an image that is in the first one's engine until its gate opens."""
    async with two(folder, models) as (one, other):
        first = await occupy(one.batcher, one.gate)
        yield one, other, first
        one.gate.open.set()
        await first


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 300)


def test_waiting_images_are_computed_by_another_workers_idle_engine(tmp_path: Path) -> None:
    before = REGISTRY.get_sample_value("chestct_borrowed_images_total") or 0

    async def run() -> None:
        async with crowded(tmp_path) as (one, other, first):
            scores = await asyncio.gather(*await enqueue(one.batcher, 7, 9))
            assert [(score.ood_score, score.probabilities.tolist(), score.heatmap.shape) for score in scores] == [
                (level, [level] * 4, MAP) for level in (7, 9)
            ]
            assert not first.done()
            assert other.gate.batches == [[7, 9]]

    asyncio.run(run())
    assert REGISTRY.get_sample_value("chestct_borrowed_images_total") == before + 2


def test_an_image_is_alone_only_if_the_other_engine_is_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.inference.batcher.QUIET_SECONDS", 0)

    async def run() -> list[int]:
        async with two(tmp_path) as (one, other):
            one.batcher._infer_alone = one.gate.infer_alone
            await one.batcher.score(image(1))
            first = await occupy(other.batcher, other.gate)
            await one.batcher.score(image(2))
            other.gate.open.set()
            await first
            await one.batcher.score(image(3))
            return one.gate.alone

    assert asyncio.run(run()) == [1, 3]


def test_borrowed_scores_are_exact(tmp_path: Path) -> None:
    async def run() -> None:
        random = np.random.default_rng(3)
        async with two(tmp_path) as (one, other):
            real = other.gate.infer

            def infer(pixels: NDArray[np.uint8]) -> object:
                scores = real(pixels)
                return scores._replace(
                    probabilities=random.random(scores.probabilities.shape, np.float32),
                    ood_score=random.random(len(pixels), np.float32),
                    chest_ct=random.random(len(pixels), np.float32),
                    heatmaps=random.random(scores.heatmaps.shape, np.float32),
                )

            other.batcher._infer = infer  # type: ignore[assignment]
            await occupy(one.batcher, one.gate)
            (score,) = await asyncio.gather(*await enqueue(one.batcher, 5))
            again = np.random.default_rng(3)
            assert (score.probabilities == again.random((1, 4), np.float32)[0]).all()
            assert (score.ood_score, score.chest_ct) == (again.random((), np.float32), again.random((), np.float32))
            assert (score.heatmap == again.random((1, *MAP), np.float32)[0]).all()

    asyncio.run(run())


def test_no_batch_is_lent_if_no_other_engine_is_idle(tmp_path: Path) -> None:
    async def run() -> None:
        async with two(tmp_path) as (one, other):
            await occupy(other.batcher, other.gate, 1)
            first = await occupy(one.batcher, one.gate)
            tasks = await enqueue(one.batcher, 7, 9)
            await asyncio.sleep(0.05)
            assert one.gate.batches == [[0]]
            one.gate.open.set()
            await asyncio.gather(first, *tasks)
            assert one.gate.batches == [[0], [7, 9]]
            assert other.gate.batches == [[1]]

    asyncio.run(run())


def test_a_worker_that_lends_takes_its_own_images_next(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path) as (one, other, first):
            other.gate.open.clear()
            lent = await enqueue(one.batcher, 7)
            await until(other.gate.entered)
            own = await enqueue(other.batcher, 8)
            later = await enqueue(one.batcher, 9)
            await asyncio.sleep(0.05)
            assert other.gate.batches == [[7]]
            other.gate.open.set()
            await asyncio.gather(*lent, *own)
            assert other.gate.batches[:2] == [[7], [8]]
            one.gate.open.set()
            await asyncio.gather(first, *later)

    asyncio.run(run())


def test_a_batch_that_another_worker_loses_is_computed_here(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path) as (one, other, _):
            other.gate.open.clear()
            tasks = await enqueue(one.batcher, 7, 9)
            await until(other.gate.entered)
            await other.lending.stop()  # like a killed worker: closed connections
            await asyncio.sleep(0.05)
            one.gate.open.set()
            assert [score.ood_score for score in await asyncio.gather(*tasks)] == [7, 9]  # type: ignore[attr-defined]
            assert one.gate.batches == [[0], [7, 9]]

    asyncio.run(run())


def test_a_worker_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_sharing, "ANSWER_SECONDS", 1)

    async def run() -> None:
        async with crowded(tmp_path) as (one, other, _):
            other.gate.open.clear()
            tasks = await enqueue(one.batcher, 7)
            await until(other.gate.entered)
            one.gate.open.set()
            (score,) = await asyncio.gather(*tasks)
            assert score.ood_score == 7  # type: ignore[attr-defined]
            assert one.gate.batches == [[0], [7]]

    asyncio.run(run())


def test_a_batch_that_fails_in_another_engine_fails_alone_and_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path) as (one, other, _):
            one.gate.poison = other.gate.poison = 13
            tasks = await enqueue(one.batcher, 13)
            await until(other.gate.entered)
            await asyncio.sleep(0.05)
            one.gate.open.set()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(outcomes[0], EngineFailed)
            assert one.gate.batches == [[0], [13]]
            assert other.gate.batches == [[13]]

    asyncio.run(run())


def test_another_models_engine_is_never_borrowed(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path, ("old", "new")) as (one, other, first):
            tasks = await enqueue(one.batcher, 7)
            await asyncio.sleep(0.05)
            one.gate.open.set()
            await asyncio.gather(first, *tasks)
            assert one.gate.batches == [[0], [7]]
            assert other.gate.batches == []

    asyncio.run(run())


def test_a_cancelled_image_leaves_the_lender_free(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path) as (one, other, _):
            (gone,) = await enqueue(one.batcher, 7)
            gone.cancel()
            await asyncio.sleep(0.05)
            (score,) = await asyncio.gather(*await enqueue(one.batcher, 9))
            assert score.ood_score == 9  # type: ignore[attr-defined]
            assert other.gate.batches == [[9]]

    asyncio.run(run())


def test_closing_waits_for_lent_and_borrowed_batches(tmp_path: Path) -> None:
    async def run() -> None:
        async with crowded(tmp_path) as (one, other, first):
            other.gate.open.clear()
            tasks = await enqueue(one.batcher, 7)
            await until(other.gate.entered)
            one.gate.open.set()
            await first
            closing = [asyncio.create_task(worker.batcher.close()) for worker in (one, other)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in closing)
            other.gate.open.set()
            (score,) = await asyncio.gather(*tasks)
            assert score.ood_score == 7  # type: ignore[attr-defined]
            await asyncio.gather(*closing)

    asyncio.run(run())
