"""The histogram that writes many observations at once: nothing is lost, and each is in its bucket."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from serving.telemetry import gathering_histogram
from serving.telemetry.gathering_histogram import GatheringHistogram


def make(registry: CollectorRegistry, name: str) -> GatheringHistogram:
    return GatheringHistogram(name, "For a test.", ("kind",), buckets=(1, 2), registry=registry)


def test_a_collection_has_every_observation_in_the_bucket_of_prometheus(registry: CollectorRegistry) -> None:
    histogram = make(registry, "collected")
    for amount in (0.5, 1, 1.5, 2, 3):
        histogram.labels("a").observe(amount)
    histogram.labels("b").observe(7)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }
    assert [found["collected_bucket", "a", bound] for bound in ("1.0", "2.0", "+Inf")] == [2, 4, 5]
    assert (found["collected_count", "a"], found["collected_sum", "a"]) == (5, 8)
    assert (found["collected_count", "b"], found["collected_sum", "b"]) == (1, 7)


def test_observations_are_written_together_and_without_a_collection(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = make(registry, "written").labels("a")
    written: list[float] = []
    monkeypatch.setattr(child._sum, "inc", written.append)

    async def observe() -> None:
        for turn in range(2):
            child.observe(1)
            child.observe(2)
            assert len(written) == turn
            await asyncio.sleep(2 * gathering_histogram.WRITE_SECONDS)

    asyncio.run(observe())
    assert written == [3, 3]


def test_what_a_closed_loop_left_is_written_in_the_next_one(registry: CollectorRegistry) -> None:
    child = make(registry, "left").labels("a")

    async def observe(amount: float) -> None:
        child.observe(amount)

    async def observe_and_wait(amount: float) -> None:
        child.observe(amount)
        await asyncio.sleep(2 * gathering_histogram.WRITE_SECONDS)

    asyncio.run(observe(1))
    asyncio.run(observe_and_wait(2))
    assert child._sum.get() == 3


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()
