"""The Open Inference Protocol v2 free of transport: what the model takes and answers, and the checks between.

Both edges, HTTP under /v2 and gRPC, translate their messages to `Request` and `Tensor` and nothing more.
"""

import base64
import json
import math
import struct
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import Frozen, ModelCard
from chestct.image import InvalidImage
from chestct.prediction import Prediction
from serving.call import Call
from serving.classifier import Classifier, Outcome
from serving.window import LUNG, Window, choose_window

SERVER: Final = "chestct"
PLATFORM: Final = "onnx_onnxv1"
"""The protocol's name for a model kept as ONNX, whatever runs it."""
IMAGE: Final = "image"
PIXELS: Final = "pixels"

Datatype = Literal["BYTES", "FP32", "UINT8"]

_UNSUPPORTED: Final = ("classification", "shared_memory_region")
"""Parameters of Triton's extensions that would change what is read or answered."""


_LONGEST_QUOTE: Final = 64
"""Characters of a name that came, in an error's message; the name itself may be as long as the body."""
_MOST_DIMENSIONS: Final = 8
"""Of a shape, in an error's message."""
_KINDS: Final = {str: "text", float: "a fraction", bool: "true or false", list: "a list", dict: "an object"}


class InvalidRequest(ValueError):
    """The request is not what the model's metadata describes; the message says what was expected and what came."""

    code: Final = "invalid_request"


class UnknownModel(LookupError):
    """The request names a model or a version that is not served here; the message names what is."""

    code: Final = "unknown_model"


class TensorMetadata(Frozen):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """-1 stands for the number of images."""


class ModelMetadata(Frozen):
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    properties: dict[str, str]


class Input(NamedTuple):
    """An input tensor as it came, unchecked.

    `data` is either bytes, the protocol's raw form (UINT8: one byte an element, row by row; BYTES: each element after
    its length as 4 bytes, little-endian), or a sequence of the elements. Of BYTES these are bytes, or base64 as str,
    since JSON can't carry bytes (and no PNG or JPEG file is text); of UINT8 integers, flat or nested in the shape. What
    came as JSON may hold anything at all in their place.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any]


class Request(NamedTuple):
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...] = ()
    """Names of the wanted outputs; none means all but those that cost extra (`heatmaps`, `preview`)."""
    window: Window = LUNG
    """For `image`s that are DICOM files."""


class Question(NamedTuple):
    """A request that was checked: nothing of the message that it came in is left."""

    images: list[bytes] | NDArray[np.uint8]
    """Encoded files, or pixels uint8 [N, height, width, channels]."""
    outputs: "tuple[_Output, ...]"
    window: Window


class Tensor(NamedTuple):
    """An output tensor; `values` has math.prod(shape) elements, row by row: bytes for BYTES, float for FP32."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: list[Any]
    files: bool
    """The BYTES are PNG files; else they are text."""

    def raw(self) -> bytes:
        """The protocol's raw form, little-endian; see Input."""
        if self.datatype == "BYTES":
            return pack_bytes(self.values)
        return np.asarray(self.values, "<f4").tobytes()

    def plain(self) -> list[Any]:
        """The elements as JSON can carry them: files in base64."""
        if self.datatype != "BYTES":
            return self.values
        return [(base64.b64encode(value) if self.files else value).decode() for value in self.values]


class _Output(NamedTuple):
    name: str
    datatype: Datatype
    per_class: bool
    """[N, classes] in the card's order, else [N]."""
    read: Callable[[Prediction], list[Any]]
    """The elements of one prediction, row by row."""
    files: bool = False
    """PNG files, which take work of their own: only on request."""


def _json(values: Sequence[str]) -> list[bytes]:
    return [json.dumps(values).encode()]


def _base64(values: Sequence[str]) -> list[bytes]:
    return [base64.b64decode(value) for value in values]


# A null label is the empty string and a null confidence 0: JSON, the protocol's other encoding, has no NaN, and no
# label's confidence can be below 1 / classes.
_OUTPUTS: Final = (
    _Output("probabilities", "FP32", True, lambda p: list(p.probabilities.values())),
    _Output("ood_score", "FP32", False, lambda p: [p.ood_score]),
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


def version(tag: str) -> str:
    """The version in a tag of the model store: `chestct:abc` is version `abc`."""
    return tag.partition(":")[2]


def metadata(card: ModelCard, tag: str) -> ModelMetadata:
    """What a client needs to know to ask this model."""
    return ModelMetadata(
        name=card.name,
        versions=(version(tag),),
        platform=PLATFORM,
        inputs=_inputs(card),
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


def find(card: ModelCard, tag: str, name: str, wanted: str) -> None:
    """Check that the model `name` in the version `wanted` (empty: any) is the one served. Raises UnknownModel."""
    if name != card.name:
        raise UnknownModel(f"expected the model {card.name!r}, got {_quote(name)}")
    if wanted not in ("", version(tag)):
        raise UnknownModel(f"expected the version {version(tag)!r} of {card.name!r} or none, got {_quote(wanted)}")


def check_parameters(names: Container[str]) -> None:
    """Parameters that this server doesn't know are ignored, as they may be, but for those that change the answer.

    Raises InvalidRequest.
    """
    for name in _UNSUPPORTED:
        if name in names:
            raise InvalidRequest(f"parameters: expected none of {', '.join(_UNSUPPORTED)}, got {name!r}")


def read_window(parameters: Mapping[str, Any]) -> Window:
    """The window that the parameters of a request ask for. Raises InvalidRequest."""
    try:
        return choose_window(parameters)
    except ValueError as error:
        raise InvalidRequest(f"parameters: {error}") from None


def read(classifier: Classifier, request: Request) -> Question:
    """What the request asks for, so that its message need not be kept while the model works. Raises InvalidRequest."""
    outputs = tuple(_wanted(request.outputs))
    return Question(_read(request.inputs, classifier.card, classifier.settings.max_images), outputs, request.window)


async def infer(classifier: Classifier, question: Question, call: Call) -> tuple[Tensor, ...]:
    """Answer a request.

    The protocol has one status for a call, so one bad image fails the call: InvalidImage then names its index.
    Raises InvalidImage, and what Classifier.classify raises.
    """
    images, outputs, window = question
    explain = any(output.files for output in outputs)
    if isinstance(images, list):
        outcomes = await classifier.classify_many(images, call, explain=explain, window=window)
        predictions = [_good(index, outcome) for index, outcome in enumerate(outcomes)]
    else:
        predictions = await classifier.classify_pixels(images, call, explain=explain)
    return tuple(_tensor(output, predictions, classifier.card) for output in outputs)


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """BYTES elements in the protocol's raw form: each after its length as 4 bytes, little-endian."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def unpack_bytes(raw: bytes, at_most: int | None = None) -> list[bytes]:
    """The elements of `pack_bytes`. Raises InvalidRequest where the lengths don't add up, or there are more."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + 4
        end = start + int.from_bytes(raw[position:start], "little")
        if end > len(raw):
            raise InvalidRequest(
                f"expected BYTES elements, each after its length as 4 bytes, little-endian; element {len(elements)} "
                f"ends at byte {end} of {len(raw)}"
            )
        if len(elements) == at_most:
            raise InvalidRequest(f"expected at most {at_most} BYTES elements, got more")
        elements.append(raw[start:end])
        position = end
    return elements


def _inputs(card: ModelCard) -> tuple[TensorMetadata, ...]:
    spec = card.input
    return (
        TensorMetadata(name=IMAGE, datatype="BYTES", shape=(-1,)),
        TensorMetadata(name=PIXELS, datatype="UINT8", shape=(-1, spec.height, spec.width, spec.channels)),
    )


def _wanted(names: Sequence[str]) -> list[_Output]:
    if not names:
        return [output for output in _OUTPUTS if not output.files]
    known = {output.name: output for output in _OUTPUTS}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"outputs: expected some of {', '.join(known)}, got {_quote(name)}")
    return [known[name] for name in dict.fromkeys(names)]


def _read(inputs: Sequence[Input], card: ModelCard, max_images: int) -> list[bytes] | NDArray[np.uint8]:
    """The encoded images, or the pixels uint8 [N, height, width, channels]."""
    specs = {spec.name: spec for spec in _inputs(card)}
    if len(inputs) != 1 or inputs[0].name not in specs:
        names = ", ".join(_quote(tensor.name) for tensor in inputs[:4]) or "none"
        raise InvalidRequest(f"inputs: expected exactly one of {IMAGE!r} and {PIXELS!r}, got {names}")
    tensor = inputs[0]
    spec = specs[tensor.name]
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"{spec.name}: expected the datatype {spec.datatype}, got {_quote(tensor.datatype)}")
    count = tensor.shape[0] if tensor.shape else 0
    if tensor.shape != (count, *spec.shape[1:]) or not 1 <= count <= max_images:
        wanted: list[int | str] = ["N", *spec.shape[1:]]
        raise InvalidRequest(
            f"{spec.name}: expected the shape {_shape(wanted)} with N of 1 to {max_images}, got {_shape(tensor.shape)}"
        )
    return _images(tensor) if tensor.name == IMAGE else _pixels(tensor)


def _images(tensor: Input) -> list[bytes]:
    count = math.prod(tensor.shape)
    elements = unpack_bytes(tensor.data, count) if isinstance(tensor.data, bytes) else tensor.data
    _same_count(tensor, len(elements))
    return [_image(index, element) for index, element in enumerate(elements)]


def _image(index: int, element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    try:
        return base64.b64decode(element, validate=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{IMAGE}[{index}]: expected a file in base64: {error}") from None


def _pixels(tensor: Input) -> NDArray[np.uint8]:
    if isinstance(tensor.data, bytes):
        _same_count(tensor, len(tensor.data))
        levels = tensor.data
    else:
        levels = _levels(tensor, _flat(tensor, tensor.data))
    return np.frombuffer(levels, np.uint8).reshape(tensor.shape)


def _flat(tensor: Input, data: Sequence[Any]) -> Sequence[Any]:
    """The elements of data that is flat or nested in the tensor's shape, row by row, as many as the shape says."""
    if not data or not isinstance(data[0], list):
        _same_count(tensor, len(data))
        return data
    level: Sequence[Any] = [data]
    for depth, size in enumerate(tensor.shape):
        if set(map(type, level)) - {list, type(data)}:
            got = f"something else than a list at depth {depth}"
        elif lengths := set(map(len, level)) - {size}:
            got = f"a list of {min(lengths)} elements at depth {depth}"
        else:
            level = list(chain.from_iterable(level))
            continue
        raise InvalidRequest(
            f"{tensor.name}: expected {math.prod(tensor.shape)} elements, flat or nested as {_shape(tensor.shape)}, "
            f"got {got}"
        )
    return level


def _levels(tensor: Input, values: Sequence[Any]) -> bytes:
    """Grey levels, one byte each. NumPy would make room for the longest of whatever the values are, for each of them.

    Raises InvalidRequest.
    """
    if others := set(map(type, values)) - {int}:
        got = " and ".join(sorted(_KINDS.get(kind, "null") for kind in others))
        raise InvalidRequest(f"{tensor.name}: expected whole numbers of 0 to 255, got {got}")
    try:
        return bytes(values)
    except (ValueError, OverflowError):
        got = f"{_number(min(values))} to {_number(max(values))}"
        raise InvalidRequest(f"{tensor.name}: expected values of 0 to 255, got {got}") from None


def _same_count(tensor: Input, count: int) -> None:
    expected = math.prod(tensor.shape)
    if count != expected:
        raise InvalidRequest(
            f"{tensor.name}: expected {expected} elements for the shape {_shape(tensor.shape)}, got {count}"
        )


def _shape(shape: Sequence[int | str]) -> str:
    more = ["..."] if len(shape) > _MOST_DIMENSIONS else []
    return f"[{', '.join([*map(_number, shape[:_MOST_DIMENSIONS]), *more])}]"


def _number(value: int | str) -> str:
    """A number in an error's message; Python refuses to write one of 4,300 digits."""
    return str(value) if isinstance(value, str) or abs(value) < 10**18 else "a number of more than 18 digits"


def _quote(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_QUOTE else f"{name[:_LONGEST_QUOTE]}...")


def _good(index: int, outcome: Outcome) -> Prediction:
    if isinstance(outcome, InvalidImage):
        raise InvalidImage(outcome.code, f"{IMAGE}[{index}]: {outcome.message}") from outcome
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _tensor(output: _Output, predictions: Sequence[Prediction], card: ModelCard) -> Tensor:
    shape = (len(predictions), len(card.classes)) if output.per_class else (len(predictions),)
    values = [value for prediction in predictions for value in output.read(prediction)]
    return Tensor(output.name, output.datatype, shape, values, output.files)
