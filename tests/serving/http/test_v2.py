"""The Open Inference Protocol over HTTP with the tiny model: requests and answers byte by byte."""

import asyncio
import base64
import json
import logging
from typing import Any

import httpx
import numpy as np
import pytest

import chestct
from chestct.card import DISCLAIMER
from serving.http import body
from serving.http.app import create_app
from serving.tensors import pack_bytes, unpack_bytes
from tests.graphs import tiny_picture
from tests.serving.http.client import LIMIT, SETTINGS, Client, png

JSON_LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/chestct/infer"


def infer(client: Client, **arguments: Any) -> httpx.Response:
    return client.post(INFER, **arguments)


def binary(client: Client, message: Any, *tails: bytes) -> httpx.Response:
    """Send a request of the binary extension."""
    head = json.dumps(message).encode()
    return infer(client, content=b"".join((head, *tails)), headers={JSON_LENGTH: str(len(head))})


def image(*files: bytes | str, **fields: Any) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() if isinstance(file, bytes) else file for file in files]
    return {"name": "image", "datatype": "BYTES", "shape": [len(files)], "data": data, **fields}


def binary_image(size: float, count: int = 1) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}


def outputs(response: httpx.Response) -> dict[str, Any]:
    """The values of each output, from JSON or binary data."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(JSON_LENGTH, len(response.content)))
    rest = response.content[length:]
    found = {}
    for output in json.loads(response.content[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[output["name"]] = output["data"]
            continue
        part, rest = rest[:size], rest[size:]
        found[output["name"]] = (
            np.frombuffer(part, "<f4").tolist() if output["datatype"] == "FP32" else unpack_bytes(part)
        )
    assert rest == b""
    return found


def assert_error(response: httpx.Response, status: int, start: str, *words: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert response.json()["error"].startswith(start)
    for word in words:
        assert word in response.json()["error"]


def test_the_server_says_what_it_is(client: Client) -> None:
    answer = client.get("/v2").json()
    assert answer == {"name": "chestct", "version": chestct.__version__, "extensions": ["binary_tensor_data"]}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/v2/models/chestct", "/v2/models/chestct/versions/abc"])
def test_a_model_is_found_by_name_and_by_version(client: Client, path: str) -> None:
    about = client.get(path).json()
    assert (about["name"], about["versions"], about["platform"]) == ("chestct", ["abc"], "onnx_onnxv1")
    assert about["inputs"][0] == {"name": "image", "datatype": "BYTES", "shape": [-1]}
    assert about["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]}
    assert json.loads(about["properties"]["classes"])[2] == "normal"
    assert client.get(f"{path}/ready").json() == {"name": "chestct", "ready": True}
    answer = client.post(f"{path}/infer", json={"inputs": [image(png(2))]})
    assert outputs(answer)["label"] == ["normal"]
    assert answer.json()["model_name"] == "chestct"
    assert answer.json()["model_version"] == "abc"
    assert answer.json()["parameters"] == {"disclaimer": DISCLAIMER}


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/chestct/versions/abd"])
def test_another_model_or_version_is_not_found(client: Client, path: str) -> None:
    for response in (client.get(path), client.get(f"{path}/ready"), client.post(f"{path}/infer", json={})):
        assert_error(response, 404, "unknown_model: ")


@pytest.mark.parametrize("path", ["/v2/", "/v2/models", "/v2/models/chestct/config"])
def test_an_unknown_path_is_answered_in_the_protocol_s_error_form(client: Client, path: str) -> None:
    assert_error(client.get(path), 404, "not_found: ")


def test_a_wrong_method_is_answered_in_the_protocol_s_error_form(client: Client) -> None:
    assert_error(client.get(INFER), 405, "method_not_allowed: ", "POST")


def test_only_the_liveness_probe_succeeds_before_the_model_is_warm() -> None:
    with asyncio.Runner() as runner:
        client = Client(create_app(SETTINGS), runner.get_loop())
        assert client.get("/v2/health/live").status_code == 200
        model = "/v2/models/chestct"
        for response in (client.get("/v2/health/ready"), client.get(f"{model}/ready"), infer(client, json={})):
            assert_error(response, 503, "not_ready: ")
            assert response.headers["Retry-After"] == "2"


def test_json_and_binary_get_the_same_answer_in_either_form(client: Client) -> None:
    files = [png(2), png(0)]
    raw = pack_bytes(files)
    as_json = outputs(infer(client, json={"inputs": [image(*files)]}))
    answer = binary(client, {"inputs": [binary_image(len(raw), 2)], "parameters": {"binary_data_output": True}}, raw)
    as_binary = outputs(answer)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert as_json.keys() == as_binary.keys()
    assert as_json["label"] == ["normal", "adenocarcinoma"]
    assert as_binary["label"] == [b"normal", b"adenocarcinoma"]
    assert as_json["probabilities"] == pytest.approx(as_binary["probabilities"], abs=1e-7)


def test_pixels_may_be_flat_nested_or_binary(client: Client) -> None:
    pixels = np.stack([tiny_picture(3), tiny_picture(1)])
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    answers = [
        infer(client, json={"inputs": [tensor | {"data": pixels.ravel().tolist()}]}),
        infer(client, json={"inputs": [tensor | {"data": pixels.tolist()}]}),
        binary(client, {"inputs": [tensor | {"parameters": {"binary_data_size": pixels.size}}]}, pixels.tobytes()),
    ]
    first, *others = [outputs(answer) for answer in answers]
    assert first["label"] == ["squamous_cell_carcinoma", "large_cell_carcinoma"]
    assert first["warnings"] == ['["pixels_input"]'] * 2
    assert others == [first, first]


def test_only_requested_outputs_are_answered_each_in_its_form(client: Client) -> None:
    wanted = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
        {"name": "preview", "parameters": {"binary_data": False}},
    ]
    message = {"inputs": [image(png(2))], "outputs": wanted, "parameters": {"binary_data_output": True}}
    answer = infer(client, json=message)
    found = outputs(answer)
    assert list(found) == ["label", "probabilities", "preview"]
    assert found["label"] == ["normal"]
    assert base64.b64decode(found["preview"][0]).startswith(b"\x89PNG")
    described = {o["name"]: o for o in json.loads(answer.content[: int(answer.headers[JSON_LENGTH])])["outputs"]}
    assert described["probabilities"]["parameters"] == {"binary_data_size": 16}
    assert described["preview"]["parameters"] == {"content_type": "base64"}
    assert "parameters" not in described["label"]


def test_a_body_that_is_one_file_needs_no_json(client: Client) -> None:
    answer = infer(client, content=png(2), headers={JSON_LENGTH: "0"})
    assert outputs(answer)["label"] == [b"normal"]


def test_an_id_is_echoed_and_names_the_request(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving"):
        answer = infer(client, json={"id": "scan-17", "inputs": [image(png())]})
    assert answer.json()["id"] == "scan-17"
    assert answer.headers["X-Request-ID"] == "scan-17"
    assert '"request_id":"scan-17"' in caplog.text
    both = infer(client, json={"id": "scan-18", "inputs": [image(png())]}, headers={"X-Request-ID": "call-1"})
    assert (both.json()["id"], both.headers["X-Request-ID"]) == ("scan-18", "call-1")
    assert "id" not in infer(client, json={"inputs": [image(png())]}).json()


def test_a_bad_image_is_named_and_the_next_request_answered(client: Client) -> None:
    message = {"inputs": [image(png(), b"GIF89a", png())]}
    assert_error(infer(client, json=message), 400, "undecodable_image: image[1]: ")
    assert infer(client, json={"inputs": [image(png())]}).status_code == 200


SIZE = {"binary_data_size": 1}
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 1]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        pytest.param([], "body: ", id="no object"),
        pytest.param({}, "inputs: Field required", id="no inputs"),
        pytest.param({"inputs": []}, "exactly one of 'image' and 'pixels', got none", id="empty inputs"),
        pytest.param({"inputs": [image(png()), PIXELS | {"data": []}]}, "exactly one", id="both inputs"),
        pytest.param({"id": 7, "inputs": []}, "id: ", id="id"),
        pytest.param({"inputs": [image(png(), shape=["1"])]}, "inputs.0.shape.0: ", id="shape"),
        pytest.param({"inputs": [image(png(), shape=[10**30])]}, "N of 1 to 4", id="huge shape"),
        pytest.param({"inputs": [image("no base64!")]}, "image[0]: expected a file in base64", id="base64"),
        pytest.param({"inputs": [image(png(), data=[7])]}, "image[0]: expected a file in base64", id="number"),
        pytest.param({"inputs": [image(png(), data=None)]}, "image: expected either data or", id="no data"),
        pytest.param({"inputs": [image(png(), parameters=SIZE)]}, "image: expected either data or", id="data twice"),
        pytest.param({"inputs": [binary_image(5)]}, "at most the 0 bytes left, got 5", id="no tail"),
        pytest.param({"inputs": [binary_image(-1)]}, "got -1", id="negative size"),
        pytest.param({"inputs": [image(png(), parameters={"binary_data_size": "1"})]}, "to be int", id="size as text"),
        pytest.param({"inputs": [image(png())], "outputs": [{"name": "logits"}]}, "got 'logits'", id="output"),
        pytest.param(
            {"inputs": [image(png())], "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
            "expected none of classification",
            id="unsupported parameter",
        ),
        pytest.param({"inputs": [PIXELS | {"data": [1.5] * 1024}]}, "whole numbers", id="fractions"),
        pytest.param({"inputs": [PIXELS | {"data": [256] * 1024}]}, "got 256 to 256", id="levels"),
        pytest.param({"inputs": [PIXELS | {"data": [[1], [1, 2]]}]}, "a list of 2 elements at depth 0", id="ragged"),
        pytest.param({"inputs": [PIXELS | {"data": [[1] * 1024]}]}, "a list of 1024 elements", id="nested otherwise"),
        pytest.param({"inputs": [PIXELS | {"data": []}]}, "expected 1024 elements", id="no pixels"),
        pytest.param({"inputs": [PIXELS | {"data": {}}]}, "inputs.0.data: ", id="an object of pixels"),
        pytest.param({"inputs": [PIXELS | {"data": "x"}]}, "inputs.0.data: ", id="text of pixels"),
        pytest.param({"inputs": [PIXELS | {"data": [""] * 1024}]}, "got text", id="text for a pixel"),
        pytest.param({"inputs": [PIXELS | {"data": [10**400, *[0] * 1023]}]}, "more than 18 digits", id="400 digits"),
        pytest.param({"inputs": [binary_image(10**400)]}, "at most the 0 bytes left, got 1000", id="400 digits' size"),
        pytest.param({"inputs": [binary_image(1.0)]}, "to be int, got float", id="a fraction of a size"),
        pytest.param({"inputs": [binary_image(True)]}, "to be int, got bool", id="a flag for a size"),
        pytest.param({"inputs": [image(png(), shape=[-1])]}, "N of 1 to 4", id="negative shape"),
        pytest.param({"inputs": [image(png(), shape=[1] * 65)]}, "inputs.0.shape: ", id="dimensions"),
        pytest.param({"inputs": [image(png(), shape=[10**400])]}, "N of 1 to 4", id="400 digits' shape"),
        pytest.param({"inputs": [image(png())] * 65}, "inputs: ", id="inputs"),
        pytest.param({"inputs": [image(png())], "outputs": [{"name": "label"}] * 65}, "outputs: ", id="outputs"),
        pytest.param({"inputs": [image(png())], "id": "x" * 1001}, "id: ", id="long id"),
        pytest.param({"inputs": [image(png())], "parameters": [1]}, "parameters: ", id="parameters as a list"),
        pytest.param({"inputs": [image(png())], "parameters": {"binary_data_output": 1}}, "to be bool", id="flag"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_answered_with_what_was_expected(client: Client, message: Any, words: str) -> None:
    assert_error(infer(client, json=message), 400, "invalid_request: ", words)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"inputs": [{}] * 1000}, id="inputs"),
        pytest.param({"inputs": [image(png(), shape=[""] * 1000)]}, id="shape"),
        pytest.param({"inputs": [image(png())], "outputs": [{}] * 1000}, id="outputs"),
    ],
)
def test_only_the_first_invalid_element_of_a_list_is_reported(client: Client, message: Any) -> None:
    answer = infer(client, json=message)
    assert_error(answer, 400, "invalid_request: ")
    assert len(answer.text) < 200
    assert ".1." not in answer.text


def test_an_error_that_quotes_the_request_is_short(client: Client) -> None:
    assert len(infer(client, json={"inputs": [image(png(), name="x" * 20_000)]}).text) < 1100


@pytest.mark.parametrize("length", ["x", "-1", "+1", "1.0", "0x1", "", "99999", "9" * 400, "9" * 5000, "²"])
def test_a_wrong_length_of_the_json_is_refused(client: Client, length: str) -> None:
    headers = {JSON_LENGTH: length.encode("latin-1")}
    assert_error(infer(client, content=b"{}", headers=headers), 400, f"invalid_request: {JSON_LENGTH}")


def test_bytes_after_the_last_input_are_refused(client: Client) -> None:
    raw = pack_bytes([png()])
    response = binary(client, {"inputs": [binary_image(len(raw))]}, raw, b"more")
    assert_error(response, 400, "invalid_request: ", "got 4")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="half an object"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(b"[" * 5000, id="deep"),
        pytest.param(b"[" * 5000 + b"]" * 5000, id="deep and whole"),
        pytest.param(b'{"a":' * 5000, id="deep objects"),
        pytest.param(b'{"id": NaN, "inputs": []}', id="NaN"),
        pytest.param(b'{"id": -Infinity, "inputs": []}', id="infinity"),
        pytest.param(b'{"id": ' + b"9" * 5000 + b', "inputs": []}', id="5000 digits"),
        pytest.param(b'{"id": "\\ud800", "inputs": []}', id="half a surrogate pair"),
        pytest.param(b'{"id": "\0", "inputs": []}', id="NUL"),
        pytest.param(b'\xef\xbb\xbf{"inputs": []}', id="byte order mark"),
    ],
)
def test_a_body_that_is_not_json_is_refused(client: Client, content: bytes) -> None:
    assert_error(infer(client, content=content), 400, "invalid_request: body: ")


def test_unknown_parameters_are_ignored(client: Client) -> None:
    message = {"inputs": [image(png(2), parameters={"content_type": "base64"})], "parameters": {"priority": 1}}
    assert outputs(infer(client, json=message))["label"] == ["normal"]


def test_a_body_over_the_limit_and_a_compressed_one_are_refused(client: Client) -> None:
    assert_error(infer(client, content=bytes(LIMIT + 1)), 413, "body_too_large: ")
    assert_error(infer(client, content=b"x", headers={"Content-Encoding": "gzip"}), 415, "unsupported_encoding: ")


def test_a_full_queue_answers_429_with_retry_after(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.state.classifier._batcher, "_queue_size", 0)
    response = infer(client, json={"inputs": [image(png())]})
    assert_error(response, 429, "overloaded: ")
    assert int(response.headers["Retry-After"]) >= 1


def test_metrics_are_labelled_by_template_not_by_path(client: Client) -> None:
    client.get("/v2/models/somebody-s/ready")
    client.get("/v2/made-up")
    text = client.get("/metrics").text
    assert 'code="404",protocol="http",route="/v2/models/{name}/ready"' in text
    assert "somebody" not in text
    assert "made-up" not in text


def test_binary_data_after_the_json_is_not_counted_as_json(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(body.MAX_JSON, b",", 100)
    picture = np.full_like(tiny_picture(1), ord(","))
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, *picture.shape]}
    response = infer(client, json={"inputs": [{**pixels, "data": picture.ravel().tolist()}]})
    assert_error(response, 413, "json_too_large: expected JSON with at most 100 of ',', got 10")
    in_binary = {**pixels, "parameters": {"binary_data_size": picture.size}}
    assert binary(client, {"inputs": [in_binary]}, picture.tobytes()).status_code == 200
