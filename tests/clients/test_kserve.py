"""The KServe SDK's clients, over HTTP and gRPC."""

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

IMAGE = Path(os.environ["IMAGE"]).read_bytes()
URL = f"http://{os.environ['HTTP']}"


def images(*files: bytes) -> InferRequest:
    tensor = InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    return InferRequest("chestct", [tensor], request_id="scan-17")


def over_http(request: InferRequest) -> Any:
    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        try:
            assert await client.is_server_live(URL)
            assert await client.is_server_ready(URL)
            assert await client.is_model_ready(URL, "chestct")
            return await client.infer(URL, request, model_name="chestct")
        finally:
            await client.close()

    return asyncio.run(ask())


def over_grpc(request: InferRequest) -> Any:
    async def ask() -> Any:
        async with InferenceGRPCClient(os.environ["GRPC"]) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("chestct")
            return await client.infer(request)

    return asyncio.run(ask())


def texts(answer: Any, name: str) -> list[str]:
    values = answer.get_output_by_name(name).as_numpy().tolist()
    return [value if isinstance(value, str) else value.decode() for value in values]


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_images_are_answered(ask: Any) -> None:
    answer = ask(images(IMAGE, IMAGE))
    assert answer.id == "scan-17"
    assert texts(answer, "label") == ["normal", "normal"]
    assert answer.get_output_by_name("probabilities").as_numpy().argmax(axis=1).tolist() == [2, 2]


def test_binary_outputs_are_understood() -> None:
    request = images(IMAGE)
    request.parameters = {"binary_data_output": True}
    assert texts(over_http(request), "label") == ["normal"]


def test_json_carries_images_in_base64() -> None:
    tensor = InferInput("image", [1], "BYTES", data=[base64.b64encode(IMAGE).decode()])
    assert texts(over_http(InferRequest("chestct", [tensor])), "label") == ["normal"]


def test_a_bad_image_is_refused_in_words() -> None:
    with pytest.raises(httpx.HTTPStatusError, match=r"undecodable_image: image\[0\].*400"):
        over_http(images(b"GIF89a"))
    with pytest.raises(grpc.RpcError) as refused:
        over_grpc(images(b"GIF89a"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
