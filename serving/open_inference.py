"""The Open Inference Protocol v2 without a transport: the model's metadata, the checks of a request, and its answer.

HTTP under /v2 and gRPC only translate their messages to `Request` and from `Tensor`.
"""

import base64
import json
import struct
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import ModelCard
from chestct.document import Frozen
from chestct.invalid_image import InvalidImage
from chestct.prediction import Prediction
from chestct.store import version_of
from serving.inference.classifier import Classifier, Outcome
from serving.telemetry.request_record import RequestRecord
from serving.tensors import (
    IMAGE,
    Datatype,
    Input,
    InvalidRequest,
    TensorMetadata,
    describe_inputs,
    pack_bytes,
    quote,
    read_inputs,
)

SERVER: Final = "chestct"
PLATFORM: Final = "onnx_onnxv1"
"""The protocol's name for an ONNX model, whatever the runtime is."""
_UNSUPPORTED: Final = ("classification", "shared_memory_region", "window_center", "window_width")
"""Parameters that would change the answer: two of Triton's extensions, and the window of a DICOM file."""


class UnknownModel(LookupError):
    """The request names a model or a version that is not served. The message names the one that is."""

    code: Final = "unknown_model"


class ModelMetadata(Frozen):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    properties: dict[str, str]


class Request(NamedTuple):
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...] = ()
    """Names of the wanted outputs. Without any, all are wanted except those that cost extra (`heatmaps`, `preview`)."""


class CheckedRequest(NamedTuple):
    """A checked request, which refers to no part of its message."""

    images: list[bytes] | NDArray[np.uint8]
    """Encoded files, or pixels uint8 [N, height, width, channels]."""
    outputs: "tuple[_Output, ...]"


class Tensor(NamedTuple):
    """An output tensor. `values` has math.prod(shape) elements, row by row: bytes for BYTES, float for FP32."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: list[Any]
    files: bool
    """Whether the BYTES are PNG files. Otherwise they are text."""

    def raw(self) -> bytes:
        """The elements in the protocol's raw form, little-endian; see Input."""
        if self.datatype == "BYTES":
            return pack_bytes(self.values)
        return struct.pack(f"<{len(self.values)}f", *self.values)

    def json_data(self) -> list[Any]:
        """The elements for JSON, with files in base64."""
        if self.datatype != "BYTES":
            return self.values
        return [(base64.b64encode(value) if self.files else value).decode() for value in self.values]


class _Output(NamedTuple):
    name: str
    datatype: Datatype
    per_class: bool
    """Whether the shape is [N, classes] in the card's order. Otherwise it is [N]."""
    read: Callable[[Prediction], Sequence[Any]]
    """Function that gives the elements of one prediction, row by row."""
    files: bool = False
    """Whether the elements are PNG files, which cost extra and are made only on request."""


@lru_cache(maxsize=1024)
def _json(values: tuple[str, ...]) -> tuple[bytes]:
    return (json.dumps(values).encode(),)


def _base64(values: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(value) for value in values]


# A withheld label (rejected or unfamiliar) is the empty string and its confidence 0, because JSON has no NaN. The
# confidence of a label is 1 / classes or more.
_OUTPUTS: Final = (
    _Output("probabilities", "FP32", True, lambda p: list(p.probabilities.values())),
    _Output("ood_score", "FP32", False, lambda p: [p.ood_score]),
    _Output("chest_ct", "FP32", False, lambda p: [p.chest_ct]),
    _Output("confidence", "FP32", False, lambda p: [p.confidence or 0.0]),
    _Output("label", "BYTES", False, lambda p: [(p.label or "").encode()]),
    _Output("decision", "BYTES", False, lambda p: [p.decision.encode()]),
    _Output("prediction_set", "BYTES", False, lambda p: _json(p.prediction_set)),
    _Output("between", "BYTES", False, lambda p: _json(p.between)),
    _Output("reasons", "BYTES", False, lambda p: _json(p.reasons)),
    _Output("warnings", "BYTES", False, lambda p: _json(p.warnings)),
    _Output("heatmaps", "BYTES", True, lambda p: _base64(list((p.heatmaps or {}).values())), files=True),
    _Output("preview", "BYTES", False, lambda p: _base64([p.preview or ""]), files=True),
)


def metadata(card: ModelCard, tag: str) -> ModelMetadata:
    """Metadata of the model for clients."""
    return ModelMetadata(
        name=card.name,
        versions=(version_of(tag),),
        platform=PLATFORM,
        inputs=describe_inputs(card),
        outputs=tuple(
            TensorMetadata(
                name=output.name,
                datatype=output.datatype,
                shape=(-1, len(card.classes)) if output.per_class else (-1,),
            )
            for output in _OUTPUTS
        ),
        properties={
            "classes": json.dumps(card.classes),
            "inputs": "exactly one of `image` (PNG, JPEG or DICOM files) and `pixels` (grey levels of that size)",
            "disclaimer": card.disclaimer,
        },
    )


def check_model(card: ModelCard, tag: str, name: str, wanted: str) -> None:
    """Check that the service has the model `name` in the version `wanted`, empty for any. Raises UnknownModel."""
    if name != card.name:
        raise UnknownModel(f"expected the model {card.name!r}, got {quote(name)}")
    if wanted not in ("", version_of(tag)):
        raise UnknownModel(f"expected the version {version_of(tag)!r} of {card.name!r} or none, got {quote(wanted)}")


def check_parameters(names: Container[str]) -> None:
    """Raise InvalidRequest for parameters that would change the answer. Other unknown parameters are ignored."""
    for name in _UNSUPPORTED:
        if name in names:
            raise InvalidRequest(f"parameters: expected none of {', '.join(_UNSUPPORTED)}, got {name!r}")


def check_request(classifier: Classifier, request: Request) -> CheckedRequest:
    """Check a request. The result does not need its message, whose memory can be freed. Raises InvalidRequest."""
    outputs = tuple(_find_outputs(request.outputs))
    return CheckedRequest(read_inputs(request.inputs, classifier.card, classifier.settings.max_images), outputs)


async def infer(classifier: Classifier, request: CheckedRequest, record: RequestRecord) -> tuple[Tensor, ...]:
    """Answer a request. Raises the errors of Classifier.classify.

    The protocol has one status for all images, so one bad image fails the request. InvalidImage then has its index.
    """
    images, outputs = request
    explain = any(output.files for output in outputs)
    if isinstance(images, list):
        outcomes = await classifier.classify_many(images, record, explain=explain)
        predictions = [_prediction(index, outcome) for index, outcome in enumerate(outcomes)]
    else:
        predictions = await classifier.classify_pixels(images, record, explain=explain)
    return tuple(_tensor(output, predictions, classifier.card) for output in outputs)


def _find_outputs(names: Sequence[str]) -> list[_Output]:
    if not names:
        return [output for output in _OUTPUTS if not output.files]
    known = {output.name: output for output in _OUTPUTS}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"outputs: expected some of {', '.join(known)}, got {quote(name)}")
    return [known[name] for name in dict.fromkeys(names)]


def _prediction(index: int, outcome: Outcome) -> Prediction:
    if isinstance(outcome, InvalidImage):
        raise InvalidImage(outcome.code, f"{IMAGE}[{index}]: {outcome.message}") from outcome
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _tensor(output: _Output, predictions: Sequence[Prediction], card: ModelCard) -> Tensor:
    shape = (len(predictions), len(card.classes)) if output.per_class else (len(predictions),)
    values = [value for prediction in predictions for value in output.read(prediction)]
    return Tensor(output.name, output.datatype, shape, values, output.files)
