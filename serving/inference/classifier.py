"""The one way from bytes to an answer, whatever the protocol: decode, queue, engine, decide."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.card import InputSpec, ModelCard
from chestct.dicom_format import is_dicom
from chestct.image import SIGNATURES, Facts, InvalidImage, Picture, decode_encoded, encode_png, inspect
from chestct.prediction import Prediction, decide
from chestct.store import StoredModel
from chestct.unsupported_formats import describe_unsupported
from serving.inference.batcher import Batcher, BatchReport, EngineFailed, Score
from serving.inference.engine_sharing import EngineSharing
from serving.inference.guarded_reader import GuardedReader, ReaderFailed
from serving.inference.window import LUNG, Window
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Overloaded
from serving.worker_load import WorkerLoad

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Engine

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

Outcome = Prediction | InvalidImage | Overloaded | EngineFailed | ReaderFailed


class Classifier:
    """One model, ready to answer. Used from one event loop; every protocol shares its queue and its engine."""

    def __init__(self, engine: Engine, card: ModelCard, tag: str, settings: Settings) -> None:
        self.card: Final = card
        self.tag: Final = tag
        self.settings: Final = settings
        self._engine = engine
        self._largest_batch = min(settings.largest_batch, engine.largest_batch)
        self._batcher = Batcher(
            engine.infer, largest_batch=self._largest_batch, queue_size=settings.queue_size, report=_count_batch
        )
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._reader = GuardedReader(card.input)
        self._lending: EngineSharing | None = None
        self._warm = False
        self._stopping = False

    @property
    def ready(self) -> bool:
        """The model is warm, and nobody has told the service to stop: for those who choose where to send requests."""
        return self._warm and not self._stopping

    @property
    def accepting(self) -> bool:
        """Requests are answered: also while the service is told to stop and others have not noticed yet."""
        return self._warm

    @property
    def busy_since(self) -> float:
        """When the engine's batch began, on time.monotonic's clock; infinity while it has none."""
        return self._batcher.busy_since

    def announce_stop(self) -> None:
        """Be not ready from now on, and go on answering until `close`."""
        self._stopping = True

    def check_room(self, deadline: float) -> None:
        """Raise Overloaded or Closed where `classify` would at once for a call with this deadline."""
        self._batcher.check_room(deadline)

    async def classify(
        self, data: bytes, call: RequestRecord, *, explain: bool = False, window: Window = LUNG
    ) -> Prediction:
        """Answer for one encoded image.

        `window` is for a DICOM file and says nothing to others; `explain` adds the heat maps and the preview. Raises
        InvalidImage, Overloaded, Closed, EngineFailed, and TimeoutError if the call's deadline passes before the engine
        takes the image.
        """
        self._batcher.check_room(call.deadline)
        if is_dicom(data):
            picture = await self._read_guarded(data, call, window)
        elif data.startswith(SIGNATURES):
            with self._coming():
                decoded = await self._in_decoder(_decode_if_cheap, data, self.card.input)
            if decoded is None:
                picture = await self._read_guarded(data, call)
            else:
                picture, seconds = decoded
                _count_decoding(call, seconds)
        elif data:
            words = f"expected a PNG or JPEG image or a DICOM file, got {describe_unsupported(data)}"
            raise InvalidImage("undecodable_image", words)
        else:
            raise InvalidImage("empty_image", "expected a PNG or JPEG image or a DICOM file, got no bytes")
        return await self._answer(picture.pixels, picture.facts, call, explain=explain)

    async def classify_many(
        self, images: Sequence[bytes], call: RequestRecord, *, explain: bool = False, window: Window = LUNG
    ) -> list[Outcome]:
        """One outcome per encoded image, in order; what fails one leaves the others alone.

        A long list takes only a part of the queue at a time, so that others are still answered meanwhile.
        """

        async def outcome(data: bytes) -> Outcome:
            try:
                return await self.classify(data, call, explain=explain, window=window)
            except (InvalidImage, Overloaded, EngineFailed, ReaderFailed) as error:
                return error

        return await self._in_part([partial(outcome, data) for data in images])

    async def classify_pixels(
        self, pixels: NDArray[np.uint8], call: RequestRecord, *, explain: bool = False
    ) -> list[Prediction]:
        """Answer for uint8 [N, height, width, 1] of the size the card names, with the warning `pixels_input`.

        Raises ValueError for another shape or type, and what `classify` raises but for InvalidImage.
        """
        spec = self.card.input
        expected = (spec.height, spec.width, spec.channels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected:
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"expected pixels uint8 [N, {wanted}], got {pixels.dtype} {list(pixels.shape)}")
        answer = partial(self._answer, facts=None, call=call, explain=explain)
        return await self._in_part([partial(answer, row) for row in pixels])

    async def warm_up(self) -> None:
        """Run every compiled batch once, so that the first request is as fast as the next."""
        spec = self.card.input
        for size in (size for size in self.settings.batch_sizes if size <= self._largest_batch):
            blank = np.zeros((size, spec.height, spec.width, spec.channels), np.uint8)
            scores = await asyncio.to_thread(self._engine.infer, blank)
        self._heatmap = scores.heatmaps.shape[1:]
        lineage = self.card.lineage
        metrics.MODEL.labels(self.tag, lineage.run_id, lineage.git_commit, lineage.data_digest).set(1)
        self._warm = True

    async def share(self, load: WorkerLoad, folder: Path) -> None:
        """After the warm-up: lend the engine to the other workers in `load`, and borrow theirs while they idle.

        `folder` is for their sockets. Raises OSError where one can't be made there.
        """
        spec = self.card.input
        model = self.tag.rpartition(":")[2]
        if sys.platform == "linux":  # a socket's path is short: 107 bytes
            folder = Path(f"/proc/self/fd/{os.open(folder, os.O_PATH)}")
        self._lending = EngineSharing(
            load,
            lambda worker: folder / f"engine-{os.getppid()}-{model}-{worker}",
            self._batcher.lend,
            (spec.height, spec.width, spec.channels),
            self._heatmap,
        )
        await self._lending.start()
        self._batcher.share(self._lending)

    async def close(self) -> None:
        """Refuse new images and finish those that were taken."""
        self._warm = False
        self._stopping = True
        await self._batcher.close()
        if self._lending:
            await self._lending.stop()
        await asyncio.to_thread(self._decoders.shutdown)
        await self._reader.close()

    async def _read_guarded(self, data: bytes, call: RequestRecord, window: Window | None = None) -> Picture:
        """The picture of a file that only the guarded process may decode.

        It has no place in the engine's queue meanwhile: one slow file after the other would else keep others out.
        """
        with metrics.QUEUE_DEPTH.track_inprogress():
            picture, waited, seconds = await self._reader.read(data, call, window)
        call.queue_seconds += waited
        _count_decoding(call, seconds)
        return picture

    @contextmanager
    def _coming(self) -> Iterator[None]:
        """One image more has its place in the queue, and is not in it yet."""
        self._batcher.decoding += 1
        try:
            with metrics.QUEUE_DEPTH.track_inprogress():
                yield
        finally:
            self._batcher.decoding -= 1

    async def _in_decoder(self, work: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
        """The result of work that would hold up the event loop, done where images are decoded."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    async def _answer(
        self, pixels: NDArray[np.uint8], facts: Facts | None, call: RequestRecord, *, explain: bool
    ) -> Prediction:
        with metrics.QUEUE_DEPTH.track_inprogress():
            # What was decoded was let in before: to turn it away now would be work for nothing.
            score = await self._batcher.score(pixels, call.deadline, admitted=facts is not None)
        call.images += 1
        call.queue_seconds += score.waited
        call.infer_seconds += score.seconds
        heatmaps, preview = None, None
        if explain:
            heatmaps, preview = await self._in_decoder(self._explain, pixels, score)
        prediction = decide(
            self.card,
            score.probabilities,
            score.ood_score,
            facts,
            request_id=call.request_id,
            model=self.tag,
            heatmaps=heatmaps,
            preview=preview,
        )
        metrics.PREDICTIONS.labels(prediction.decision, prediction.label or "none").inc()
        metrics.OOD_SCORE.observe(prediction.ood_score / self.card.thresholds.ood_limit)
        if prediction.confidence is not None:
            metrics.CONFIDENCE.observe(prediction.confidence)
        return prediction

    def _explain(self, pixels: NDArray[np.uint8], score: Score) -> tuple[dict[str, str], str]:
        """Heat maps of the input's size on one scale, so that they compare between the classes of an image.

        Black is where nothing speaks for the class; what speaks against it is not told apart from that.
        """
        size = (self.card.input.width, self.card.input.height)
        supporting = np.maximum(score.heatmap, 0)
        scaled = supporting * (255 / max(float(supporting.max()), 1e-6))
        maps = {
            name: _base64_png(np.asarray(Image.fromarray(map_).resize(size, Image.Resampling.BILINEAR)).round())
            for name, map_ in zip(self.card.classes, scaled, strict=True)
        }
        return maps, _base64_png(pixels[:, :, 0])

    async def _in_part(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """The results in order; only so many calls run at a time that the queue keeps room for other requests."""
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


def load_engine(model: StoredModel, settings: Settings) -> Engine:
    """The model's engine as its card and the settings want it."""
    from chestct.engine import Engine

    card = model.read_card()
    return Engine(
        model.graph,
        threads=settings.engine_threads,
        batch_sizes=settings.batch_sizes,
        bfloat16=settings.bfloat16 and card.bfloat16 is not None,
        recheck=card.thresholds.refer_margin,
    )


def _base64_png(grey: NDArray[np.generic]) -> str:
    return base64.b64encode(encode_png(grey.astype(np.uint8))).decode("ascii")


def _decode_if_cheap(data: bytes, spec: InputSpec) -> tuple[Picture, float] | None:
    """The picture and the seconds it took; None where only the guarded process may decode it."""
    started = time.perf_counter()
    encoded = inspect(data)
    if not encoded.cheap:
        return None
    picture = decode_encoded(encoded, spec)
    return picture, time.perf_counter() - started


def _count_decoding(call: RequestRecord, seconds: float) -> None:
    metrics.DECODE_SECONDS.observe(seconds)
    call.decode_seconds += seconds


def _count_batch(batch: BatchReport) -> None:
    metrics.BATCH_SIZE.observe(batch.size)
    metrics.INFER_SECONDS.observe(batch.seconds)
    for seconds in batch.waited:
        metrics.QUEUE_SECONDS.observe(seconds)
