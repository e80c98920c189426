"""Checks the input tensors of the Open Inference Protocol and converts them to images or pixels."""

import base64
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import ModelCard
from chestct.document import Frozen

IMAGE: Final = "image"
PIXELS: Final = "pixels"

Datatype = Literal["BYTES", "FP32", "UINT8"]

_LONGEST_QUOTE: Final = 64
"""Most characters of a client's name in an error message. The name itself may be as long as the body."""
_MOST_DIMENSIONS: Final = 8
"""Most dimensions of a shape in an error message."""
_KINDS: Final = {str: "text", float: "a fraction", bool: "true or false", list: "a list", dict: "an object"}


class InvalidRequest(ValueError):
    """The request does not match the model's metadata. The message says what was expected and what came."""

    code: Final = "invalid_request"


class TensorMetadata(Frozen):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """-1 is the number of images."""


class Input(NamedTuple):
    """An unchecked input tensor.

    `data` is bytes in the protocol's raw form or a sequence of elements. In the raw form, UINT8 has one byte for each
    element, row by row, and BYTES has the length of each element before it, as 4 bytes, little-endian. In a sequence,
    the elements of BYTES are bytes or base64 text, and those of UINT8 are integers, flat or nested in the shape. A
    sequence from JSON may also hold anything else.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any]


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Convert BYTES elements to the protocol's raw form."""
    return b"".join([len(element).to_bytes(4, "little") + element for element in elements])


def unpack_bytes(raw: bytes, at_most: int | None = None) -> list[bytes]:
    """Reverse `pack_bytes`. Raises InvalidRequest if the lengths don't add up, or there are more elements."""
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


def describe_inputs(card: ModelCard) -> tuple[TensorMetadata, ...]:
    """The inputs, of which a request has exactly one."""
    spec = card.input
    return (
        TensorMetadata(name=IMAGE, datatype="BYTES", shape=(-1,)),
        TensorMetadata(name=PIXELS, datatype="UINT8", shape=(-1, spec.height, spec.width, spec.channels)),
    )


def read_inputs(inputs: Sequence[Input], card: ModelCard, max_images: int) -> list[bytes] | NDArray[np.uint8]:
    """The encoded images, or the pixels uint8 [N, height, width, channels]. Raises InvalidRequest."""
    if len(inputs) != 1 or inputs[0].name not in (IMAGE, PIXELS):
        names = ", ".join(quote(tensor.name) for tensor in inputs[:4]) or "none"
        raise InvalidRequest(f"inputs: expected exactly one of {IMAGE!r} and {PIXELS!r}, got {names}")
    tensor = inputs[0]
    spec = card.input
    datatype, rest = ("BYTES", ()) if tensor.name == IMAGE else ("UINT8", (spec.height, spec.width, spec.channels))
    if tensor.datatype != datatype:
        raise InvalidRequest(f"{tensor.name}: expected the datatype {datatype}, got {quote(tensor.datatype)}")
    count = tensor.shape[0] if tensor.shape else 0
    if tensor.shape != (count, *rest) or not 1 <= count <= max_images:
        wanted: list[int | str] = ["N", *rest]
        got = _shape(tensor.shape)
        raise InvalidRequest(
            f"{tensor.name}: expected the shape {_shape(wanted)} with N of 1 to {max_images}, got {got}"
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
    """The elements of flat or nested data, row by row. Checks their number by the shape."""
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
    """Grey levels as bytes. NumPy would allocate the size of the largest value for each. Raises InvalidRequest."""
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
    """A number in an error message. Python can't convert one of more than 4,300 digits."""
    return str(value) if isinstance(value, str) or abs(value) < 10**18 else "a number of more than 18 digits"


def quote(name: str) -> str:
    """A client's name for an error message, cut off after _LONGEST_QUOTE characters."""
    return repr(name if len(name) <= _LONGEST_QUOTE else f"{name[:_LONGEST_QUOTE]}...")
