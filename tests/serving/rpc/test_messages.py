"""Messages that are wrong in each way that protobuf allows. Each gets an error, and none costs much."""

import math
import random
from typing import Any

import pytest
from grpc import StatusCode
from open_inference.grpc import protocol

from serving import rpc
from serving.rpc import message_limits
from tests.serving.rpc.server import SIZE, Server, ask, labels, png, refusal

INFER = f"/{rpc.SERVICE}/ModelInfer"
LAYOUT = message_limits.read_layout(protocol.DESCRIPTOR.message_types_by_name["ModelInferRequest"])
LIMITS = message_limits.Limits(fields=100, pixel_bytes=2 * SIZE * SIZE)
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 1]}


def field(number: int, kind: int, payload: bytes) -> bytes:
    return bytes([number << 3 | kind]) + payload


def nested(*numbers: int, content: bytes) -> bytes:
    """Content in nested fields with these numbers, the outermost first."""
    for number in reversed(numbers):
        content = field(number, 2, varint(len(content)) + content)
    return content


def varint(value: int) -> bytes:
    parts = [value >> shift & 127 | 128 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*parts[:-1], parts[-1] & 127])


EMPTY = b"\x00"
EXPLOSIONS = {
    "inputs": field(5, 2, EMPTY) * 1_000_000,
    "parameters": field(4, 2, EMPTY) * 1_000_000,
    "empty elements": nested(5, 5, content=field(8, 2, EMPTY) * 1_000_000),
    "contents, again and again": nested(5, content=field(5, 2, EMPTY) * 1_000_000),
    "parameters of an input": nested(5, content=field(4, 2, EMPTY) * 1_000_000),
    "parameters of an output": nested(6, content=field(2, 2, EMPTY) * 1_000_000),
    "a shape": nested(5, content=field(3, 0, EMPTY) * 1_000_000),
    "a packed shape": nested(5, 3, content=bytes(1_000_000)),
    "unpacked pixels": nested(5, 5, content=field(4, 0, EMPTY) * 1_000_000),
    "packed integers of 64 bits": nested(5, 5, 3, content=bytes(1_000_000)),
    "packed flags": nested(5, 5, 1, content=bytes(1_000_000)),
    "pixels": nested(5, 5, 4, content=bytes(1_000_000)),
    "unknown fields": field(14, 2, EMPTY) * 1_000_000,
    "behind a group": field(1, 3, b"") + field(1, 4, b"") + field(5, 2, EMPTY) * 1_000_000,
    "a name": field(1, 2, varint(1_000_000) + b"x" * 1_000_000),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_a_message_that_grows_when_parsed_is_refused_unparsed(server: Server, name: str) -> None:
    with pytest.raises((message_limits.TooMuch, message_limits.NotProtobuf)):
        message_limits.check_size(EXPLOSIONS[name], LAYOUT, LIMITS)
    error = refusal(server.channel.unary_unary(INFER), EXPLOSIONS[name])
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("invalid_request: expected a message of ModelInfer")


def test_ordinary_messages_are_within_the_limits() -> None:
    every = [{"name": name} for name in ("probabilities", "label", "decision", "reasons", "heatmaps", "preview")]
    raw = {"name": "image", "datatype": "BYTES", "shape": [64]}
    messages = [
        ask(*[png(1)] * 64, outputs=every, id="a" * 1000),
        ask(inputs=[raw], raw_input_contents=[bytes(10_000_000)]),
        ask(inputs=[{**PIXELS, "contents": {"uint_contents": [200] * SIZE * SIZE}}]),
        ask(png(1), parameters={"binary_data": {"double_param": -600.0}, "unknown": {"int64_param": -1}}),
    ]
    for message in messages:
        message_limits.check_size(message.SerializeToString(), LAYOUT, LIMITS)


@pytest.mark.parametrize("at", range(40))
def test_a_message_cut_anywhere_is_none_or_a_shorter_one(at: int) -> None:
    whole = ask(png(1), id="a").SerializeToString()
    cut = whole[: at * len(whole) // 40]
    try:
        message_limits.check_size(cut, LAYOUT, LIMITS)
    except message_limits.NotProtobuf:
        with pytest.raises(Exception, match="parsing"):
            protocol.ModelInferRequest.FromString(cut)
    else:
        protocol.ModelInferRequest.FromString(cut)


ODD: list[dict[str, Any]] = [
    *({"bool_param": value} for value in (True, False)),
    *({"int64_param": value} for value in (0, -1, 2**63 - 1, -(2**63))),
    {"uint64_param": 2**64 - 1},
    *({"double_param": value} for value in (math.nan, math.inf, -math.inf, 1e308, -0.0, 5e-324)),
    *({"string_param": value} for value in ("", "NaN", "9" * 5000, "1_0", "٣", "0x10", "\0", "😀" * 1000, " 40 ")),
    {},
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("name", ["binary_data", "classification", "unknown"])
def test_a_parameter_of_any_kind_is_answered_or_refused(server: Server, name: str, value: dict[str, Any]) -> None:
    in_words(server, ask(png(1), parameters={name: value}))


REFUSALS = ("invalid_request", "unknown_model", "empty_image", "undecodable_image")


def in_words(server: Server, request: protocol.ModelInferRequest | bytes) -> StatusCode:
    """The status of an answer: OK or a refusal in our form."""
    message = request if isinstance(request, bytes) else request.SerializeToString()
    error = server.channel.unary_unary(INFER).future(message, timeout=300).exception(300)
    if error is None:
        return StatusCode.OK
    assert error.code() in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND), error
    assert error.details().partition(": ")[0] in REFUSALS
    assert len(error.details().encode()) <= 1000
    return error.code()


SHAPES = [
    [],
    [0],
    [-1],
    [2],
    [1, 1],
    [2**63 - 1],
    [-(2**63)],
    [2**62, 4],
    [1, SIZE, SIZE],
    [1, SIZE, SIZE, 3],
    [1, -SIZE, -SIZE, 1],
    [0] * 60,
    [2**63 - 1] * 60,
]
CONTENTS: list[dict[str, Any]] = [
    {},
    {"bool_contents": [True]},
    {"int_contents": [-1]},
    {"int64_contents": [2**63 - 1]},
    {"uint_contents": [2**32 - 1] * SIZE * SIZE},
    {"uint_contents": [255] * SIZE * SIZE},
    {"uint64_contents": [2**64 - 1]},
    {"fp32_contents": [math.nan]},
    {"fp64_contents": [math.inf]},
    {"bytes_contents": [b""]},
    {"bytes_contents": [b"\xff\xd8\xff"]},
]


@pytest.mark.parametrize("name", ["image", "pixels", "😀" * 300, ""])
def test_an_input_of_any_shape_type_and_contents_is_answered_or_refused(server: Server, name: str) -> None:
    for shape in SHAPES:
        for datatype in ("BYTES", "UINT8", "FP32", "", "x" * 10_000):
            for contents in CONTENTS:
                tensor = {"name": name, "datatype": datatype, "shape": shape, "contents": contents}
                in_words(server, ask(inputs=[tensor]))
            tensor = {"name": name, "datatype": datatype, "shape": shape}
            for raw in (b"", b"\xff\xff\xff\xff", bytes(SIZE * SIZE)):
                in_words(server, ask(inputs=[tensor], raw_input_contents=[raw]))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_text_that_is_not_utf_8_is_refused(server: Server, number: int) -> None:
    message = ask(png(1)).SerializeToString() + nested(number, content=b"\xff\xfe")
    assert in_words(server, message) is StatusCode.INVALID_ARGUMENT
    inner = ask(png(1)).SerializeToString() + nested(5, number, content=b"\xff\xfe")
    assert in_words(server, inner) is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("character", ["x", "%", "\n", "ä", "😀", "\U000e0001"])
def test_a_refusal_that_quotes_long_names_arrives(server: Server, character: str) -> None:
    for request in (ask(png(1), model_name=character * 10_000), ask(png(1), outputs=[{"name": character * 10_000}])):
        error = refusal(server.stub.ModelInfer, request)
        assert error.code() in (StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT)
        assert error.details().partition(": ")[0] in ("unknown_model", "invalid_request")


def test_bytes_changed_at_random_are_answered_or_refused(server: Server) -> None:
    draw = random.Random(7)
    whole = ask(png(1), id="a", parameters={"unknown": {"int64_param": 1}}).SerializeToString()
    raw = ask(inputs=[PIXELS], raw_input_contents=[bytes(SIZE * SIZE)]).SerializeToString()
    for index in range(400):
        message = bytearray(raw if index % 2 else whole)
        for _ in range(draw.randint(1, 4)):
            message[draw.randrange(min(len(message), 60))] = draw.randrange(256)
        in_words(server, bytes(message))
    assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]
