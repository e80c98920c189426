"""A file goes from a decoder's thread into the queue, or gives up its place."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from chestct.engine import Scores
from chestct.image import decode, encode_png
from chestct.invalid_image import InvalidImage
from serving.inference.batcher import Batcher
from serving.inference.batches import Score
from serving.inference.decoding import Decoding
from tests.dicom import dicom_file
from tests.graphs import tiny_card, tiny_picture

T = TypeVar("T")

SPEC = tiny_card().input
GREY = tiny_picture(1)[:, :, 0]
PNG = encode_png(GREY)


def score_by_mean(pixels: NDArray[np.uint8]) -> Scores:
    """Scores whose `ood_score` is the mean grey level."""
    count = len(pixels)
    means = pixels.reshape(count, -1).mean(1).astype(np.float32)
    return Scores(np.full((count, 4), 0.25, np.float32), means, means, np.zeros((count, 4, 2, 2), np.float32))


def use(call: Callable[[Batcher], Awaitable[T]]) -> T:
    async def run() -> T:
        batcher = Batcher(score_by_mean, largest_batch=4, queue_size=4)
        try:
            return await call(batcher)
        finally:
            await batcher.close()

    return asyncio.run(run())


async def decode_in_a_thread(batcher: Batcher, data: bytes, *, hashing: bool = False) -> tuple[Decoding, Score | None]:
    queued = batcher.reserve()
    decoding = Decoding(data, SPEC, batcher, queued, hashing=hashing)
    await asyncio.to_thread(decoding.run)
    return decoding, await batcher.wait(queued)


@pytest.mark.parametrize("hashing", [False, True])
def test_a_cheap_file_is_queued_and_scored(hashing: bool) -> None:
    decoding, score = use(lambda batcher: decode_in_a_thread(batcher, PNG, hashing=hashing))
    assert score is not None
    assert decoding.picture is not None
    expected = decode(PNG, SPEC)
    np.testing.assert_array_equal(decoding.picture.pixels, expected.pixels)
    assert score.ood_score == pytest.approx(expected.pixels.mean(), rel=1e-6)
    assert decoding.seconds > 0
    assert decoding.sha256 == (hashlib.sha256(PNG).hexdigest() if hashing else None)


def test_a_file_for_the_guarded_process_gives_up_its_place_without_a_score() -> None:
    decoding, score = use(lambda batcher: decode_in_a_thread(batcher, dicom_file(GREY), hashing=True))
    assert (score, decoding.picture, decoding.sha256, decoding.seconds) == (None, None, None, 0)


def test_a_broken_file_gives_up_its_place_with_its_error() -> None:
    async def run(batcher: Batcher) -> int:
        with pytest.raises(InvalidImage) as refused:
            await decode_in_a_thread(batcher, PNG[:-40])
        assert refused.value.code == "undecodable_image"
        return batcher.decoding

    assert use(run) == 0


def test_a_file_that_nobody_waits_for_is_not_decoded() -> None:
    async def run(batcher: Batcher) -> Decoding:
        queued = batcher.reserve()
        decoding = Decoding(PNG, SPEC, batcher, queued, hashing=False)
        waiting = asyncio.ensure_future(batcher.wait(queued))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(decoding.run)
        assert batcher.decoding == 0
        return decoding

    assert use(run).picture is None
