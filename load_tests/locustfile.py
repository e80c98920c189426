"""Locust users that send HTTP, the Open Inference Protocol with binary tensors, and gRPC. They check every answer.

Settings from the environment: LOAD_SCENARIO, a name of load_tests.shapes (default steady), and LOAD_GRPC, the gRPC
address (default 127.0.0.1:3001). Options of Locust: --host, the HTTP address, --users and --run-time; the last two are
required.
"""

import json
import math
import os
import random
import re
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import gevent
import grpc
import grpc.experimental.gevent
import locust.stats
import numpy as np
from locust import FastHttpUser, LoadTestShape, User, between, events, task
from locust.contrib.fasthttp import FastResponse
from locust.exception import LocustError
from open_inference.grpc import protocol, service
from urllib3.filepost import encode_multipart_formdata

from chestct.card import InputSpec
from chestct.image import decode
from load_tests import payloads, shapes
from load_tests.images import pictures
from pipeline.images.classes import CLASSES

grpc.experimental.gevent.init_gevent()
# Seconds that a percentile in the history covers. The default of ten would smear a short burst.
locust.stats.CURRENT_RESPONSE_TIME_PERCENTILE_WINDOW = 3

UNDECODABLE: Final = b"not an image"
IMAGES: Final = pictures(16)
BATCH: Final = 4
"""Files in a form. The last one can't be decoded."""
SCENARIO: Final = shapes.find(os.environ.get("LOAD_SCENARIO", "steady"))


class WrongAnswer(LocustError):
    """The service answered wrongly."""


@events.test_stop.add_listener
def wait_for_the_files(**_: object) -> None:
    """Wait until the CSV files hold the last answers. Locust writes them once a second."""
    gevent.sleep(locust.stats.CSV_STATS_INTERVAL_SEC + 0.5)


class Shape(LoadTestShape):
    """Sets the number of users as the scenario says."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        moment = self.get_run_time() / options.run_time
        return (SCENARIO.users_at(moment, options.num_users), options.num_users) if moment < 1 else None


def check_probabilities(probabilities: list[float]) -> None:
    """Raise WrongAnswer unless there is a probability for each class and they sum to 1."""
    if len(probabilities) != len(CLASSES) or not math.isclose(sum(probabilities), 1, abs_tol=1e-3):
        raise WrongAnswer(f"expected {len(CLASSES)} probabilities that sum to 1, got {probabilities}")


def check_prediction(response: FastResponse) -> None:
    check_probabilities(list(response.json()["probabilities"].values()))


def check_explained(response: FastResponse) -> None:
    check_prediction(response)
    answer = response.json()
    if answer["heatmaps"].keys() != answer["probabilities"].keys() or not answer["preview"]:
        raise WrongAnswer(f"expected a heat map a class and the preview, got heat maps of {list(answer['heatmaps'])}")


def check_batch(response: FastResponse) -> None:
    """Check the outcomes of a form whose last file can't be decoded."""
    *good, bad = response.json()["outcomes"]
    if len(good) != BATCH - 1:
        raise WrongAnswer(f"expected {BATCH} outcomes, got {len(good) + 1}")
    for outcome in good:
        check_probabilities(list(outcome["probabilities"].values()))
    if bad["error"]["code"] != "undecodable_image":
        raise WrongAnswer(f"expected undecodable_image, got {bad['error']['code']}")


def check_undecodable(response: FastResponse) -> None:
    if (code := response.json()["error"]["code"]) != "undecodable_image":
        raise WrongAnswer(f"expected undecodable_image, got {code}")


def check_tensors(response: FastResponse) -> None:
    """Check a binary answer: JSON with the length of each output, then the outputs one after another."""
    length = int(response.headers[payloads.JSON_LENGTH])
    rest = BytesIO(response.content[length:])
    outputs = {
        output["name"]: rest.read(output["parameters"]["binary_data_size"])
        for output in json.loads(response.content[:length])["outputs"]
    }
    if left := rest.read():
        raise WrongAnswer(f"expected no bytes after the outputs, got {len(left)}")
    check_probabilities(np.frombuffer(outputs["probabilities"], "<f4").tolist())


def check_answer(response: protocol.ModelInferResponse) -> None:
    """Raise WrongAnswer if the probabilities are wrong."""
    position = [output.name for output in response.outputs].index("probabilities")
    check_probabilities(np.frombuffer(response.raw_output_contents[position], "<f4").tolist())


class CheckedUser(FastHttpUser):
    """Sends requests over a kept connection and checks the answers."""

    abstract = True
    wait_time = between(*SCENARIO.think)

    def ask(
        self, method: str, path: str, check: Callable[[FastResponse], None], *, status: int = 200, **options: Any
    ) -> None:
        """Send one request. A wrong answer is an error in Locust's statistics."""
        with self.client.request(method, path, catch_response=True, **options) as response:
            try:
                if response.status_code != status:
                    # Only the code: the message holds the request's id, so each error would get a row of its own.
                    code = re.search(rb'"(?:code|error)": ?"(\w+)', response.content or b"")
                    words = code[1].decode() if code else getattr(response, "error", "no error code")
                    raise WrongAnswer(f"expected the status {status}, got {response.status_code}: {words}")
                check(response)
            except WrongAnswer as error:
                response.failure(error)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                response.failure(WrongAnswer(f"expected an answer in the API's form: {error!r}"))
            else:
                response.success()


class HttpUser(CheckedUser):
    """Sends images as raw bodies. Some requests ask for heat maps, send a form, or send no image."""

    weight = 2

    @task(16)
    def predict(self) -> None:
        media_type, data = random.choice(IMAGES)
        self.ask("POST", "/v1/predict", check_prediction, data=data, headers={"Content-Type": media_type})

    @task(2)
    def explain(self) -> None:
        media_type, data = random.choice(IMAGES)
        path = "/v1/predict?explain=true"
        self.ask("POST", path, check_explained, data=data, headers={"Content-Type": media_type})

    @task(1)
    def predict_batch(self) -> None:
        files = [(f"slice-{number}", *random.choice(IMAGES)[::-1]) for number in range(BATCH - 1)]
        files.append(("notes.txt", UNDECODABLE, "image/png"))
        data, media_type = encode_multipart_formdata([("images", file) for file in files])
        self.ask("POST", "/v1/predict/batch", check_batch, data=data, headers={"Content-Type": media_type})

    @task(1)
    def predict_undecodable(self) -> None:
        self.ask(
            "POST",
            "/v1/predict",
            check_undecodable,
            status=422,
            data=UNDECODABLE,
            headers={"Content-Type": "image/png"},
            name="/v1/predict undecodable",
        )


class OipUser(CheckedUser):
    """Reads the size of the model's input once, then sends pixels of that size as a binary tensor."""

    def on_start(self) -> None:
        self._body = b""

    @task
    def infer(self) -> None:
        if not self._body:
            self.ask("GET", payloads.MODEL, self._prepare)
        if self._body:
            self.ask("POST", payloads.INFER, check_tensors, data=self._body, headers=self._headers)

    def _prepare(self, metadata: FastResponse) -> None:
        (shape,) = (tensor["shape"] for tensor in metadata.json()["inputs"] if tensor["name"] == "pixels")
        _, height, width, channels = shape
        spec = InputSpec(height=height, width=width, channels=channels)
        # One image for each user. Decoding one for each request would take cores from the service that is measured.
        pixels = decode(random.choice(IMAGES)[1], spec).pixels.tobytes()
        self._body, self._headers = payloads.binary_pixels(pixels, spec)


class GrpcUser(User):
    """Sends images as BYTES elements over its own channel."""

    wait_time = between(*SCENARIO.think)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        target = os.environ.get("LOAD_GRPC", "127.0.0.1:3001")
        self._channel = grpc.insecure_channel(target, options=payloads.OWN_CONNECTION)
        self._stub = service.GRPCInferenceServiceStub(self._channel)

    @task
    def infer(self) -> None:
        message = payloads.image_message(random.choice(IMAGES)[1])
        length, wrong = 0, None
        start = time.perf_counter()
        try:
            response = self._stub.ModelInfer(message, timeout=10)
            length = response.ByteSize()
            check_answer(response)
        except grpc.RpcError as error:
            words, _, _ = (error.details() or "").partition(":")  # the rest may differ from call to call
            wrong = WrongAnswer(f"expected an answer, got {error.code().name}: {words}")
        except (LookupError, ValueError, WrongAnswer) as error:
            wrong = error
        # Not by Locust's `measure`, which counts a call that the end of the test cuts off as answered.
        self.environment.events.request.fire(
            request_type="gRPC",
            name=payloads.MODEL_INFER,
            response_time=1000 * (time.perf_counter() - start),
            response_length=length,
            context={},
            exception=wrong,
        )

    def on_stop(self) -> None:
        self._channel.close()
