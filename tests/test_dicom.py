"""DICOM files over every protocol: answered like the picture they show, or refused with the reason."""

import base64
from collections.abc import Callable
from typing import Any

import bentoml
import grpc
import httpx
import pytest
from open_inference.grpc import protocol, service
from pydicom import uid

from chestct.image import encode_png
from tests.dicom import PATIENT, dicom_file, with_frame
from tests.graphs import tiny_picture
from tests.server import Server

LEVELS = tiny_picture(1)[:, :, 0]
PNG = encode_png(LEVELS)
DICOM = dicom_file(LEVELS, signed=True)
JPEG_2000 = dicom_file(LEVELS, uid.JPEG2000Lossless)
MR = dicom_file(LEVELS, Modality="MR")
HUGE = dicom_file(LEVELS, Rows=30_000, Columns=30_000)
CUT = with_frame(LEVELS, lambda frame: frame[: len(frame) // 2])
TYPE = {"Content-Type": "application/dicom"}

Answer = dict[str, Any]
"""label, warnings and, of a refusal, code and message."""


def raw(server: Server, data: bytes) -> Answer:
    return httpx.post(f"{server.url}/v1/predict", content=data, headers=TYPE, timeout=300).json()


def form(server: Server, data: bytes) -> Answer:
    return httpx.post(f"{server.url}/v1/predict", files={"image": ("scan.dcm", data)}, timeout=300).json()


def batch(server: Server, data: bytes) -> Answer:
    files = [("images", ("a.png", PNG)), ("images", ("b.dcm", data))]
    first, second = httpx.post(f"{server.url}/v1/predict/batch", files=files, timeout=300).json()["outcomes"]
    assert first["label"] == "large_cell_carcinoma"
    return second


def oip_http(server: Server, data: bytes, **parameters: float) -> Answer:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}
    request = {"inputs": [tensor], "parameters": parameters}
    answer = httpx.post(f"{server.url}/v2/models/chestct/infer", json=request, timeout=300).json()
    if "error" in answer:
        code, _, message = answer["error"].partition(": ")
        return {"error": {"code": code, "message": message}}
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    return {"label": outputs["label"][0], "warnings": outputs["warnings"][0]}


def oip_grpc(server: Server, data: bytes, **parameters: Any) -> Answer:
    tensor = protocol.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(data)
    request = protocol.ModelInferRequest(model_name="chestct", inputs=[tensor], parameters=parameters)
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            answer = service.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=300)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                raise
            code, _, message = error.details().partition(": ")
            return {"error": {"code": code, "message": message}}
    outputs = {o.name: raw for o, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    return {name: outputs[name][4:].decode() for name in ("label", "warnings")}


def bentoml_client(server: Server, data: bytes) -> Answer:
    with bentoml.SyncHTTPClient(server.url) as client:
        (outcome,) = client.classify(images=[base64.b64encode(data).decode()])
    return outcome


PROTOCOLS: list[Callable[[Server, bytes], Answer]] = [raw, form, batch, oip_http, oip_grpc, bentoml_client]


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_a_dicom_file_is_answered_like_its_picture(server: Server, ask: Callable[[Server, bytes], Answer]) -> None:
    for data in (DICOM, JPEG_2000):
        answer = ask(server, data)
        assert answer.get("label") == "large_cell_carcinoma", answer
        assert answer["warnings"] in ([], "[]")
        assert PATIENT not in str(answer)


@pytest.mark.parametrize("ask", PROTOCOLS)
@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (MR, "unsupported_dicom", "modality CT"),
        (HUGE, "image_too_large", "16777216"),
        (CUT, "undecodable_image", "truncated or corrupt"),
    ],
    ids=["MR", "huge", "cut"],
)
def test_what_can_t_be_read_is_refused_with_the_reason(
    server: Server, ask: Callable[[Server, bytes], Answer], data: bytes, code: str, word: str
) -> None:
    error = ask(server, data)["error"]
    assert error["code"] == code
    assert word in error["message"]


def test_the_refusals_have_their_statuses(server: Server) -> None:
    for data, status in ((MR, 422), (HUGE, 413), (CUT, 422), (PNG, 200)):  # the content decides, not the type
        answer = httpx.post(f"{server.url}/v1/predict", content=data, headers=TYPE, timeout=300)
        assert answer.status_code == status, answer.text


def test_the_preview_shows_what_the_picture_shows(server: Server) -> None:
    def ask(data: bytes) -> Answer:
        return httpx.post(f"{server.url}/v1/predict?explain=true", files={"image": data}, timeout=300).json()

    of_dicom, of_png = ask(DICOM), ask(PNG)
    assert of_dicom["preview"] == of_png["preview"]
    assert of_dicom["heatmaps"] == of_png["heatmaps"]
    assert of_dicom["probabilities"] == of_png["probabilities"]


WINDOW = {"window_center": 3000, "window_width": 10}
"""It would make all black. The window is not the client's choice."""


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_a_window_is_refused_like_any_unknown_query_parameter(server: Server, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", params=WINDOW, content=DICOM, headers=TYPE, timeout=300)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_query"
    assert "got window_center, window_width" in answer.json()["error"]["message"]


def test_a_window_is_refused_over_the_open_inference_protocol_too(server: Server) -> None:
    for name, value in WINDOW.items():
        typed = protocol.InferParameter(double_param=value)
        for answer in (oip_http(server, DICOM, **{name: value}), oip_grpc(server, DICOM, **{name: typed})):
            assert answer["error"]["code"] == "invalid_request"
            assert f"got '{name}'" in answer["error"]["message"]
    assert oip_http(server, DICOM, other=1)["label"] == oip_grpc(server, DICOM)["label"] == "large_cell_carcinoma"


def test_a_window_of_a_number_that_no_float_holds_is_refused(server: Server) -> None:
    body = f'{{"inputs": [], "parameters": {{"window_center": {"9" * 400}}}}}'
    answer = httpx.post(f"{server.url}/v2/models/chestct/infer", content=body, timeout=300)
    assert answer.status_code == 400


def test_nothing_of_the_header_is_logged(server: Server) -> None:
    for data in (DICOM, MR, CUT):
        raw(server, data)
    assert PATIENT.encode() not in server.log.read_bytes()
    assert b"1.2.840." not in server.log.read_bytes()
