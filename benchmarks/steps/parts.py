"""The service's own parts, from the decision on one image to the connection, around an engine that answers at once."""

import gc
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

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
from serving.http.admission_control import AdmissionControl
from serving.http.error_boundary import ErrorBoundary
from serving.http.request_recording import RequestRecording
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry import log
from serving.telemetry.request_record import RequestRecord

TAG: Final = "chestct:steps"
DECISION: Final = "decision"
QUEUE: Final = "queue, the threads of decoder and engine, the image's metrics"
ROUTE: Final = "the route: message and answer"
RECORD: Final = "record, deadline, admission, headers, metrics, log"
STACK: Final = "BentoML, Starlette"
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


class Parts:
    """The parts around one classifier."""

    def __init__(self, card: ModelCard) -> None:
        settings = Settings(grpc_host="127.0.0.1", grpc_port=0)
        self._card: Final = card
        self._engine: Final = InstantEngine(card)
        self.classifier: Final = Classifier(self._engine, card, TAG, settings)  # type: ignore[arg-type]
        service.app.state.classifier = self.classifier
        self._bentoml: Final[ASGIApp] = service.ChestCT.to_asgi()
        kind, self._file = pictures(1)[0]
        self._decoded: Final = decode(self._file, card.input)
        self.requests: Final = Payloads(card, [(kind, self._file)])

    async def over_http(self, request: Request, stack: AsyncExitStack, *, file: bool) -> dict[str, Turn]:
        """Return the measurements of a request, each with one part more than the one before."""
        return {
            **self._inside(file=file),
            ROUTE: over_http.to_app(self._route(request), request),
            RECORD: over_http.to_app(self._bounded(request), request),
            STACK: over_http.to_app(self._bentoml, request),
            CONNECTION: await stack.enter_async_context(over_http.to_server(self._bentoml, request)),
        }

    async def over_grpc(self, message: bytes, stack: AsyncExitStack, *, file: bool) -> dict[str, Turn]:
        """Return the measurements of a call, each with one part more than the one before."""
        return {
            **self._inside(file=file),
            ROUTE: over_grpc.to_method(self.classifier, message),
            RECORD: await over_grpc.to_interceptor(self.classifier, message),
            CONNECTION: await stack.enter_async_context(over_grpc.to_server(self.classifier, message)),
        }

    def _inside(self, *, file: bool) -> dict[str, Turn]:
        facts = self._decoded.facts if file else None
        scores = (self._engine.probabilities, 0.1, 0.9)

        async def decide_one() -> None:
            decide(self._card, *scores, facts, request_id="0" * 32, model=TAG)

        async def classify() -> None:
            record = RequestRecord("0" * 32)
            if file:
                await self.classifier.classify(self._file, record)
            else:
                await self.classifier.classify_pixels(self._decoded.pixels[np.newaxis], record)

        return {DECISION: together(decide_one), QUEUE: together(classify)}

    def _route(self, request: Request) -> ASGIApp:
        (route,) = (route for route in _routes(service.app.routes) if route.name == request.route)
        parameters = {"name": self._card.name} if "{name}" in request.route else {}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await route.app({**scope, "app": service.app, "path_params": parameters}, receive, send)

        return app

    def _bounded(self, request: Request) -> ASGIApp:
        inner = ErrorBoundary(self._route(request), self.classifier.settings)
        return RequestRecording(AdmissionControl(inner, self.classifier.settings, None, lambda: self.classifier))


def _routes(routes: list[Any]) -> list[Route]:
    nested = [_routes(route.routes) if isinstance(route, Mount) else [route] for route in routes]
    return [route for group in nested for route in group]


async def measure(card: ModelCard, rounds: int, log_file: Path) -> dict[str, dict[str, float]]:
    """Return microseconds of this thread an image by kind of request, then by step."""
    parts = Parts(card)
    log.take_over(os.open(log_file, os.O_WRONLY | os.O_CREAT))
    await parts.classifier.warm_up()
    gc.collect()
    gc.freeze()  # these two as a worker does
    sys.setswitchinterval(0.0005)
    ((file_headers, file),) = parts.requests.raw("").bodies
    ((tensor_headers, tensors),) = parts.requests.binary().bodies
    predict, infer = "/v1/predict", "/v2/models/{name}/infer"
    async with AsyncExitStack() as stack:
        kinds = {
            "HTTP, file": await parts.over_http(Request(predict, predict, file_headers, file), stack, file=True),
            "HTTP, OIP, pixels": await parts.over_http(
                Request(payloads.INFER, infer, tensor_headers, tensors), stack, file=False
            ),
            "gRPC, file": await parts.over_grpc(parts.requests.grpc_image()[0], stack, file=True),
            "gRPC, pixels": await parts.over_grpc(parts.requests.grpc_pixels()[0], stack, file=False),
        }
        turns = {(kind, step): turn for kind, steps in kinds.items() for step, turn in steps.items()}
        times = await medians(turns, rounds)
    await parts.classifier.close()
    table: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for (kind, step), time in times.items():
        table[kind][step] = time - sum(table[kind].values())
    return table
