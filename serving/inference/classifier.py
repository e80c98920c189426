"""The path from bytes to an answer, shared by all protocols: decode, queue, score, decide."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from chestct.card import ModelCard
from chestct.dicom_format import is_dicom
from chestct.guarded_decoding import check_kind
from chestct.image import Facts, Picture
from chestct.invalid_image import InvalidImage
from chestct.prediction import RULES, Prediction, decide
from chestct.store import version_of
from chestct.watched import Scores
from serving.inference import explanation
from serving.inference.batcher import Batcher
from serving.inference.batches import EngineFailed, Score
from serving.inference.decoding import Decoding
from serving.inference.engine_sharing import EngineSharing
from serving.inference.guarded_reader import GuardedReader, ReaderFailed
from serving.inference.threads import Threads
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded
from serving.worker_states import WorkerStates

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Engine
    from serving.inference_log.writer import InferenceLog

T = TypeVar("T")

Outcome = Prediction | InvalidImage | Overloaded | EngineFailed | ReaderFailed


class Classifier:
    """Answers with one model. All protocols share its queue and its engine. Use it from one event loop."""

    def __init__(
        self, engine: Engine, card: ModelCard, tag: str, settings: Settings, log: InferenceLog | None = None
    ) -> None:
        """`log` gets a row for each prediction, and is closed with this."""
        self.card: Final = card
        self.tag: Final = tag
        self.settings: Final = settings
        self._engine = engine
        self._largest_batch = min(settings.largest_batch, engine.largest_batch)
        self._batcher = Batcher(
            engine.infer, engine.infer_alone, largest_batch=self._largest_batch, queue_size=settings.queue_size
        )
        self._decoders = Threads(settings.decode_threads, "decode")
        self._log = log
        self._reader = GuardedReader(card.input, hashing=log is not None)
        # From 0, so that the first of a reason is seen as an increase.
        self._reasons = {rule.name: metrics.REASONS.labels(rule.decision, rule.name) for rule in RULES}
        self._sharing: EngineSharing | None = None
        self._warm = False
        self._stopping = False
        self.all_workers_beat = True
        """False while a worker of this service hangs. Then new connections may reach it and get no answer."""

    @property
    def ready(self) -> bool:
        """Whether the model is warm, the service is not stopping, and no worker hangs. Load balancers ask for this."""
        return self._warm and not self._stopping and self.all_workers_beat

    @property
    def stopping(self) -> bool:
        """Whether the service drains or has stopped."""
        return self._stopping

    @property
    def accepting(self) -> bool:
        """Whether requests are answered. While the service drains they are, although it is not `ready`."""
        return self._warm

    @property
    def busy_since(self) -> float:
        """Start of the batch in the engine (time.monotonic); infinity if there is none."""
        return self._batcher.busy_since

    def begin_drain(self) -> None:
        """Stop being `ready`, but answer requests until `close`."""
        self._stopping = True

    def check_room(self, deadline: float) -> None:
        """Raise Closed if no requests are accepted, and Overloaded if one with this deadline would be refused."""
        if not self._warm:
            raise Closed("the model is loading or the service is stopping")
        self._batcher.check_room(deadline)

    async def classify(
        self, data: bytes, record: RequestRecord, *, explain: bool = False, place: int = 0
    ) -> Prediction:
        """Classify one encoded image.

        `explain` adds the heat maps and the preview. `place` is the image's in its request, for the log. Raises
        InvalidImage, Overloaded, Closed, EngineFailed, and TimeoutError if the deadline passes before the engine takes
        the image.
        """
        self._batcher.check_room(record.deadline)
        scored = None if is_dicom(data) else await self._decode_and_score(data, record)
        picture, sha256, score = scored or await self._read_and_score(data, record)
        image = _Image(picture.pixels, picture.facts, place, sha256)
        return await self._answer(image, score, record, explain=explain)

    async def classify_many(
        self, images: Sequence[bytes], record: RequestRecord, *, explain: bool = False
    ) -> list[Outcome]:
        """Classify encoded images. Returns an outcome for each, in order; an error of one does not affect the others.

        A long list takes only a part of the queue at a time, which leaves room for other requests.
        """

        async def outcome(place: int, data: bytes) -> Outcome:
            try:
                return await self.classify(data, record, explain=explain, place=place)
            except (InvalidImage, Overloaded, EngineFailed, ReaderFailed) as error:
                return error

        return await self._run_some_at_a_time([partial(outcome, place, data) for place, data in enumerate(images)])

    async def classify_pixels(
        self, pixels: NDArray[np.uint8], record: RequestRecord, *, explain: bool = False
    ) -> list[Prediction]:
        """Classify pixels, uint8 [N, height, width, 1] of the card's size. The answers warn of `pixels_input`.

        Raises ValueError for another shape or dtype, and the errors of `classify` except InvalidImage.
        """
        spec = self.card.input
        expected = (spec.height, spec.width, spec.channels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"expected pixels uint8 [N, {wanted}], got {pixels.dtype} {list(pixels.shape)}")

        async def answer(place: int, image: NDArray[np.uint8]) -> Prediction:
            sha256 = await self._decoders.run(lambda: hashlib.sha256(image.data).hexdigest()) if self._log else None
            with metrics.QUEUE_DEPTH.track_inprogress():
                score = await self._batcher.score(image, record.deadline)
            return await self._answer(_Image(image, None, place, sha256), score, record, explain=explain)

        return await self._run_some_at_a_time([partial(answer, place, image) for place, image in enumerate(pixels)])

    async def warm_up(self) -> None:
        """Run the engine once, so that the first request is as fast as later ones."""
        spec = self.card.input
        blank = np.zeros((1, spec.height, spec.width, spec.channels), np.uint8)
        scores = await asyncio.to_thread(self._engine.infer, blank)
        self._heatmap = scores.heatmaps.shape[1:]
        lineage = self.card.lineage
        metrics.MODEL.labels(self.tag, lineage.run_id, lineage.git_commit, lineage.data_digest).set(1)
        if self.card.reference:
            metrics.show_reference(self.card.reference)
        self._warm = True

    async def complete(self) -> None:
        """Compile the graphs that the engine lacks yet, while images are answered. Raises RuntimeError if it can't."""
        await asyncio.to_thread(self._engine.complete)

    async def share(self, states: WorkerStates, folder: Path) -> None:
        """After the warm-up, lend the engine to the other workers in `states`, and borrow their idle engines.

        `folder` holds the workers' sockets. Raises OSError if this worker's can't be made.
        """
        spec = self.card.input
        version = version_of(self.tag)
        if sys.platform == "linux":  # a socket's path is short: 107 bytes
            folder = Path(f"/proc/self/fd/{os.open(folder, os.O_PATH)}")
        self._sharing = EngineSharing(
            states,
            lambda worker: folder / f"engine-{os.getppid()}-{version}-{worker}",
            self._batcher.lend,
            (spec.height, spec.width, spec.channels),
            self._heatmap,
        )
        await self._sharing.start()
        self._batcher.share(self._sharing)

    async def close(self) -> None:
        """Refuse new images and finish the accepted ones."""
        self._warm = False
        self._stopping = True
        await self._batcher.close()
        if self._sharing:
            await self._sharing.stop()
        await asyncio.to_thread(self._decoders.close)
        await self._reader.close()
        if self._log:
            await asyncio.to_thread(self._log.close)

    async def _decode_and_score(self, data: bytes, record: RequestRecord) -> tuple[Picture, str | None, Score] | None:
        """Decode a cheap PNG or JPEG and score it. Returns the picture, the file's SHA-256 if logged, and the score.

        Returns None if the guarded process must decode it. Raises InvalidImage.
        """
        check_kind(data)
        queued = self._batcher.reserve(record.deadline)
        decoding = Decoding(data, self.card.input, self._batcher, queued, hashing=self._log is not None)
        self._decoders.start(decoding.run)
        try:
            with metrics.QUEUE_DEPTH.track_inprogress():
                score = await self._batcher.wait(queued)
        finally:
            if decoding.picture:
                _note_decoding(decoding.seconds, record)
        return (decoding.picture, decoding.sha256, score) if decoding.picture and score else None

    async def _read_and_score(self, data: bytes, record: RequestRecord) -> tuple[Picture, str | None, Score]:
        """The same in the guarded process."""
        with metrics.QUEUE_DEPTH.track_inprogress():
            # The file has no place in the engine's queue meanwhile. Otherwise slow files would keep other images out.
            picture, waited, seconds, sha256 = await self._reader.read(data, record)
            record.queue_seconds += waited
            metrics.observe_input(picture.facts)
            _note_decoding(seconds, record)
            # It was admitted before. To refuse it now would waste the work.
            score = await self._batcher.score(picture.pixels, record.deadline, admitted=True)
            return picture, sha256, score

    async def _answer(self, image: _Image, score: Score, record: RequestRecord, *, explain: bool) -> Prediction:
        pixels, facts, place, sha256 = image
        record.images += 1
        record.queue_seconds += score.waited
        record.infer_seconds += score.seconds
        heatmaps, preview = None, None
        if explain:
            heatmaps, preview = await self._decoders.run(explanation.draw, self.card.classes, pixels, score.heatmap)
        prediction = decide(
            self.card,
            score.probabilities,
            score.ood_score,
            score.chest_ct,
            facts,
            request_id=record.request_id,
            model=self.tag,
            heatmaps=heatmaps,
            preview=preview,
        )
        metrics.of_predictions(prediction.decision, prediction.label).inc()
        for reason in prediction.reasons:
            self._reasons[reason].inc()
        limit = self.card.thresholds.ood_limit
        metrics.observe_scores(Scores(score.probabilities, score.ood_score, limit, score.chest_ct))
        if self._log and sha256:
            self._log.note(record, place, sha256, facts, prediction)
        return prediction

    async def _run_some_at_a_time(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Results of the calls, in order. Few calls run at a time, so that the queue keeps room for other requests."""
        if len(calls) == 1:
            return [await calls[0]()]
        room = asyncio.Semaphore(2 * self._largest_batch)

        async def run(call: Callable[[], Awaitable[T]]) -> T:
            async with room:
                return await call()

        tasks = [asyncio.ensure_future(run(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise


def load_engine(graph: Path, card: ModelCard, settings: Settings, *, only_smallest: bool = False) -> Engine:
    """Load the graph of the card's model with the options of the card and the settings.

    If `only_smallest`, it is compiled for single images alone, and `Classifier.complete` compiles it for all else.
    """
    from chestct.engine import load

    return load(
        graph,
        card,
        threads=settings.engine_threads,
        threads_alone=settings.engine_threads_alone,
        batch_sizes=settings.batch_sizes,
        fastest=settings.arithmetic,
        only_smallest=only_smallest,
    )


class _Image(NamedTuple):
    """An image that is answered."""

    pixels: NDArray[np.uint8]
    facts: Facts | None
    """None if the request had pixels instead of a picture."""
    place: int
    """The image's in its request."""
    sha256: str | None
    """Of the file or the pixels, if they are logged."""


def _note_decoding(seconds: float, record: RequestRecord) -> None:
    metrics.DECODE_SECONDS.observe(seconds)
    record.decode_seconds += seconds
