"""The service under load: one user who speaks HTTP and one who speaks gRPC. Every answer is checked, not just counted.

Read from the environment: LOAD_GRPC, the gRPC address (default 127.0.0.1:3001), and LOAD_IMAGES, a folder whose PNG
and JPEG files are sent (default: drawn phantoms). The HTTP address is Locust's --host.
"""

import contextlib
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import grpc
import grpc.experimental.gevent
import numpy as np
from locust import FastHttpUser, User, constant, task
from locust.exception import LocustError
from open_inference.grpc import protocol, service

from load_tests.images import phantom
from pipeline.classes import CLASSES

grpc.experimental.gevent.init_gevent()

UNDECODABLE: Final = b"not an image"
MEDIA_TYPES: Final = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
PHANTOMS: Final = 16


class WrongAnswer(LocustError):
    """The service answered, but not what it should."""


def load_images() -> list[tuple[str, bytes]]:
    """Media type and bytes of each image to send."""
    folder = os.environ.get("LOAD_IMAGES")
    if folder:
        found = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in MEDIA_TYPES]
        if not found:
            raise SystemExit(f"LOAD_IMAGES: no PNG or JPEG file under {folder}")
        return [(MEDIA_TYPES[path.suffix.lower()], path.read_bytes()) for path in found]
    return [("image/png", phantom(seed)) for seed in range(PHANTOMS)]


def check_probabilities(probabilities: list[float]) -> None:
    """Raises WrongAnswer unless there is one for each class and they sum to 1."""
    if len(probabilities) != len(CLASSES) or not math.isclose(sum(probabilities), 1, abs_tol=1e-3):
        raise WrongAnswer(f"expected {len(CLASSES)} probabilities that sum to 1, got {probabilities}")


IMAGES: Final = load_images()
# gevent's clock stood still while the images were drawn; without a turn of its loop --run-time would count that time.
gevent.sleep(0)


class HttpUser(FastHttpUser):
    """Sends images as raw bodies over a kept-alive connection, now and then one that can't be decoded."""

    wait_time = constant(0)

    @task(19)
    def predict(self) -> None:
        media_type, data = random.choice(IMAGES)
        with self.client.post(
            "/v1/predict", data=data, headers={"Content-Type": media_type}, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"expected the status 200, got {response.status_code}: {response.text}")
                return
            try:
                check_probabilities(list(response.json()["probabilities"].values()))
            except WrongAnswer as error:
                response.failure(error)

    @task(1)
    def predict_undecodable(self) -> None:
        with self.client.post(
            "/v1/predict",
            data=UNDECODABLE,
            headers={"Content-Type": "image/png"},
            name="/v1/predict undecodable",
            catch_response=True,
        ) as response:
            if response.status_code in (400, 422) and response.json()["error"]["code"] == "undecodable_image":
                response.success()
            else:
                response.failure(f"expected undecodable_image, got {response.status_code}: {response.text}")


class TimedCalls(grpc.UnaryUnaryClientInterceptor):
    """Reports every call on the channel to Locust under the method's name."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        start = time.perf_counter()
        call = continuation(client_call_details, request)
        error = call.exception()  # waits for the answer
        response = None if error else call.result()
        if response is not None:
            try:
                check_answer(response)
            except WrongAnswer as wrong:
                error = wrong
        self._environment.events.request.fire(
            request_type="gRPC",
            name=client_call_details.method,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=response.ByteSize() if response is not None else 0,
            response=response,
            context={},
            exception=error,
        )
        return call


def check_answer(response: protocol.ModelInferResponse) -> None:
    """Raises WrongAnswer; see check_probabilities."""
    position = [output.name for output in response.outputs].index("probabilities")
    check_probabilities(np.frombuffer(response.raw_output_contents[position], "<f4").tolist())


class GrpcUser(User):
    """Sends images as one BYTES element over a channel of its own."""

    wait_time = constant(0)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        target = os.environ.get("LOAD_GRPC", "127.0.0.1:3001")
        # Users of one process would else share one connection, and so one worker of the server.
        self._channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = service.GRPCInferenceServiceStub(grpc.intercept_channel(self._channel, TimedCalls(environment)))

    @task
    def infer(self) -> None:
        _, data = random.choice(IMAGES)
        request = protocol.ModelInferRequest(
            model_name="chestct",
            inputs=[{"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [data]}}],
        )
        with contextlib.suppress(grpc.RpcError):  # TimedCalls has reported it
            self._stub.ModelInfer(request, timeout=10)

    def on_stop(self) -> None:
        self._channel.close()
