"""Builds the requests that load tests and benchmarks send over the Open Inference Protocol, HTTP and gRPC."""

import json
from collections.abc import Mapping
from typing import Any, Final

import grpc
from open_inference.grpc import protocol

from chestct.card import InputSpec

NAME: Final = "chestct"
MODEL: Final = f"/v2/models/{NAME}"
INFER: Final = f"{MODEL}/infer"
MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
JSON_LENGTH: Final = "Inference-Header-Content-Length"
"""Header with the number of JSON bytes before the binary tensors."""
IMAGE: Final[Mapping[str, Any]] = {"name": "image", "datatype": "BYTES", "shape": [1]}
"""Input tensor for one image file."""
OWN_CONNECTION: Final = [("grpc.use_local_subchannel_pool", 1)]
"""Channel options. Channels of one process otherwise share a connection, and so a worker of the service."""


def channel(address: str) -> grpc.aio.Channel:
    """Open a gRPC channel with a connection of its own."""
    return grpc.aio.insecure_channel(address, options=OWN_CONNECTION)


def binary_pixels(pixels: bytes, spec: InputSpec, *, binary_answer: bool = True) -> tuple[bytes, dict[str, str]]:
    """Encode an image's pixels with the protocol's binary-data extension. Returns the body and its headers."""
    tensor = {**_pixels(spec), "parameters": {"binary_data_size": len(pixels)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary_answer}}).encode()
    return head + pixels, {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def image_message(data: bytes) -> Any:
    """Return a gRPC request with one image file as a BYTES element."""
    return message(inputs=[{**IMAGE, "contents": {"bytes_contents": [data]}}])


def pixels_message(pixels: bytes, spec: InputSpec, *, count: int = 1) -> Any:
    """Return a gRPC request with the pixels of `count` images as raw contents."""
    return message(inputs=[_pixels(spec, count)], raw_input_contents=[pixels])


def message(**fields: Any) -> Any:
    return protocol.ModelInferRequest(**{"model_name": NAME, **fields})


def _pixels(spec: InputSpec, count: int = 1) -> dict[str, Any]:
    return {"name": "pixels", "datatype": "UINT8", "shape": [count, spec.height, spec.width, spec.channels]}
