"""Triton's client, over HTTP and gRPC."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

VERSION = os.environ["VERSION"]
IMAGE = Path(os.environ["IMAGE"]).read_bytes()
EDGES = {"http": (tritonclient.http, os.environ["HTTP"]), "grpc": (tritonclient.grpc, os.environ["GRPC"])}


@pytest.fixture(params=list(EDGES))
def edge(request: pytest.FixtureRequest) -> ModuleType:
    return EDGES[request.param][0]


@pytest.fixture
def client(edge: ModuleType) -> Iterator[Any]:
    address = next(address for module, address in EDGES.values() if module is edge)
    with edge.InferenceServerClient(address) as client:
        yield client


def images(edge: ModuleType, *files: bytes) -> Any:
    tensor = edge.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    return tensor


def test_the_server_and_its_model_are_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("chestct")
    assert client.is_model_ready("chestct", VERSION)


def test_metadata_is_understood(edge: ModuleType, client: Any) -> None:
    as_json = {} if edge is tritonclient.http else {"as_json": True}
    assert client.get_server_metadata(**as_json)["name"] == "chestct"
    about = client.get_model_metadata("chestct", VERSION, **as_json)
    assert about["versions"] == [VERSION]
    assert [tensor["name"] for tensor in about["inputs"]] == ["image", "pixels"]


@pytest.mark.parametrize("version", ["", VERSION])
def test_images_are_answered_by_name_and_by_version(edge: ModuleType, client: Any, version: str) -> None:
    answer = client.infer("chestct", [images(edge, IMAGE, IMAGE)], model_version=version, request_id="scan-17")
    assert answer.as_numpy("label").tolist() == [b"normal", b"normal"]
    assert answer.as_numpy("probabilities").shape == (2, 4)
    assert answer.as_numpy("probabilities").sum(axis=1) == pytest.approx([1, 1])
    identity = answer.get_response()["id"] if edge is tritonclient.http else answer.get_response().id
    assert identity == "scan-17"


def test_pixels_are_answered_and_unfamiliar_ones_without_a_label(edge: ModuleType, client: Any) -> None:
    (size,) = {tensor[1] for tensor in shapes(edge, client)}
    pixels = np.full((2, size, size, 1), 40, np.uint8)
    pixels[0, size // 2 : 3 * size // 4] = 235
    pixels[1] = 255  # unfamiliar
    tensor = edge.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    answer = client.infer("chestct", [tensor])
    assert answer.as_numpy("label").tolist() == [b"normal", b""]
    assert answer.as_numpy("decision").tolist() == [b"accept", b"refer"]
    assert json.loads(answer.as_numpy("reasons")[1]) == ["unfamiliar"]
    assert answer.as_numpy("confidence")[1] == 0
    assert answer.as_numpy("chest_ct").tolist() == pytest.approx([88.75 / 255, 1])
    warned = [json.loads(warnings) for warnings in answer.as_numpy("warnings")]
    assert warned == [["pixels_input"], ["pixels_input", "meaningless_probabilities"]]


def shapes(edge: ModuleType, client: Any) -> list[list[int]]:
    as_json = {} if edge is tritonclient.http else {"as_json": True}
    about = client.get_model_metadata("chestct", **as_json)
    return [list(map(int, tensor["shape"])) for tensor in about["inputs"] if tensor["name"] == "pixels"]


def test_only_the_requested_outputs_come(edge: ModuleType, client: Any) -> None:
    wanted = [edge.InferRequestedOutput(name) for name in ("heatmaps", "decision")]
    answer = client.infer("chestct", [images(edge, IMAGE)], outputs=wanted)
    assert answer.as_numpy("decision").tolist() == [b"accept"]
    assert all(png.startswith(b"\x89PNG") for png in answer.as_numpy("heatmaps").ravel())
    assert answer.as_numpy("label") is None


def test_a_bad_image_is_refused_in_words(edge: ModuleType, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"undecodable_image: image\[1\]"):
        client.infer("chestct", [images(edge, IMAGE, b"GIF89a")])


def test_another_model_is_refused_in_words(edge: ModuleType, client: Any) -> None:
    with pytest.raises(InferenceServerException, match="unknown_model"):
        client.infer("other", [images(edge, IMAGE)])


def test_json_carries_images_in_base64() -> None:
    tensor = tritonclient.http.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([base64.b64encode(IMAGE)], dtype=object), binary_data=False)
    wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=False) for name in ("label", "probabilities")]
    with tritonclient.http.InferenceServerClient(os.environ["HTTP"]) as client:
        answer = client.infer("chestct", [tensor], outputs=wanted)
    assert answer.as_numpy("label").tolist() == ["normal"]
    assert answer.as_numpy("probabilities").argmax() == 2
