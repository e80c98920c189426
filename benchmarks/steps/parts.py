"""The service's own parts, from the decision on one image to the connection, around an engine that answers at once."""

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from urllib3.filepost import encode_multipart_formdata

import service
from benchmarks.payloads import Payloads
from benchmarks.steps import over_grpc, over_http
from benchmarks.steps.over_http import Request
from benchmarks.steps.turns import Turn, medians, together
from chestct.card import ModelCard
from chestct.engine import Scores
from chestct.image import decode
from chestct.prediction import decide
from load_tests import payloads
from load_tests.images import pictures
from serving.http.shortcut import Shortcut, route
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry import log
from serving.telemetry.request_record import RequestRecord

TAG: Final = "chestct:steps"
PICTURES: Final = 8
"""Pictures of which the one of median size is sent."""
MANY: Final = 8
"""Images of a request that has several."""
DECISION: Final = "decision"
QUEUE: Final = "queue, the threads of decoder and engine, the image's metrics"
ROUTE: Final = "the route: message and answer"
RECORD: Final = "record, deadline, admission, headers, metrics, log"
CONNECTION: Final = "connection: uvicorn or gRPC"


class InstantEngine:
    """Gives each image the same scores, without any arithmetic."""

    largest_batch: Final = 64

    def __init__(self, card: ModelCard) -> None:
        classes = len(card.classes)
        self.probabilities: Final = np.full(classes, 0.1 / (classes - 1), np.float32)
        self.probabilities[0] = 0.9
        self._heatmap: Final = np.zeros((classes, 8, 8), np.float32)

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        count = len(pixels)
        probabilities, heatmaps = (np.stack([one] * count) for one in (self.probabilities, self._heatmap))
        return Scores(probabilities, np.full(count, 0.1, np.float32), np.full(count, 0.9, np.float32), heatmaps)

    infer_alone = infer


class Parts:
    """The parts around one classifier."""

    def __init__(self, card: ModelCard) -> None:
        settings = Settings(grpc_host="127.0.0.1", grpc_port=0)
        self._card: Final = card
        self._engine: Final = InstantEngine(card)
        self.classifier: Final = Classifier(self._engine, card, TAG, settings)  # type: ignore[arg-type]
        service.app.state.classifier = self.classifier
        self._app: Final = Shortcut(service.ChestCT.to_asgi(), service.PREDICTIONS)
        kind, self._file = sorted(pictures(PICTURES), key=lambda picture: len(picture[1]))[PICTURES // 2]
        self._decoded: Final = decode(self._file, card.input)
        self._one: Final = Payloads(card, [(kind, self._file)])

    def kinds(self) -> Iterator[tuple[str, Request | bytes, bool, int]]:
        """Name, request (a message over gRPC), whether it holds files, and the number of its images."""
        ((headers, file),) = self._one.raw("").bodies
        yield "HTTP, file", Request("/v1/predict", headers, file), True, 1
        form, form_type = encode_multipart_formdata([("images", ("slice", self._file))] * MANY, "chestct")
        yield f"HTTP, {MANY} files", Request("/v1/predict/batch", {"Content-Type": form_type}, form, MANY), True, MANY
        ((headers, tensors),) = self._one.binary().bodies
        yield "HTTP, OIP, pixels", Request(payloads.INFER, headers, tensors), False, 1
        yield "gRPC, file", self._one.grpc_image()[0], True, 1
        yield "gRPC, pixels", self._one.grpc_pixels()[0], False, 1
        message = payloads.pixels_message(self._decoded.pixels.tobytes() * MANY, self._card.input, count=MANY)
        yield f"gRPC, {MANY} pixels", message.SerializeToString(), False, MANY

    async def measurements(
        self, request: Request | bytes, stack: AsyncExitStack, *, files: bool, images: int
    ) -> dict[str, Turn]:
        """Return the measurements of a request, each with one part more than the one before."""
        inside = self._inside(files=files, images=images)
        if isinstance(request, Request):
            return inside | {
                ROUTE: over_http.to_app(route(service.app, request.path), request),
                RECORD: over_http.to_app(service.PREDICTIONS[request.path], request),
                CONNECTION: await stack.enter_async_context(over_http.to_server(self._app, request)),
            }
        return inside | {
            ROUTE: over_grpc.to_method(self.classifier, request, images),
            RECORD: await over_grpc.to_interceptor(self.classifier, request, images),
            CONNECTION: await stack.enter_async_context(over_grpc.to_server(self.classifier, request, images)),
        }

    def _inside(self, *, files: bool, images: int) -> dict[str, Turn]:
        facts = self._decoded.facts if files else None
        scores = (self._engine.probabilities, 0.1, 0.9)

        async def decide_each() -> None:
            for _ in range(images):
                decide(self._card, *scores, facts, request_id="0" * 32, model=TAG)

        async def classify() -> None:
            record = RequestRecord("0" * 32)
            if files:
                await self.classifier.classify_many([self._file] * images, record)
            else:
                await self.classifier.classify_pixels(np.stack([self._decoded.pixels] * images), record)

        return {DECISION: together(decide_each, images), QUEUE: together(classify, images)}


async def measure(card: ModelCard, rounds: int, log_file: Path) -> dict[str, dict[str, float]]:
    """Return microseconds of this thread an image by kind of request, then by step."""
    parts = Parts(card)
    log.take_over(os.open(log_file, os.O_WRONLY | os.O_CREAT))
    await parts.classifier.warm_up()
    service.tune_interpreter()
    turns: dict[tuple[str, str], Turn] = {}
    async with AsyncExitStack() as stack:
        for kind, request, files, images in parts.kinds():
            steps = await parts.measurements(request, stack, files=files, images=images)
            turns |= {(kind, step): turn for step, turn in steps.items()}
        times = await medians(turns, rounds)
    await parts.classifier.close()
    table: dict[str, dict[str, float]] = {}
    for (kind, step), time in times.items():
        before = table.setdefault(kind, {})
        before[step] = time - sum(before.values())
    return table
