"""The routes of /v1 with the tiny model."""

import asyncio
import base64
import json
import math
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from chestct.card import DISCLAIMER, ModelCard
from chestct.image import encode_png
from chestct.prediction import RULES, WARNINGS
from serving.http.request_recording import RequestRecording
from serving.memory_budget import REQUEST_BYTES, Holder, MemoryBudget
from tests.graphs import CHEST_CT_LIMIT, narrow_picture, tiny_picture, unfamiliar_picture
from tests.serving.gated_engine import GatedEngine
from tests.serving.http.client import (
    LIMIT,
    SETTINGS,
    TAG,
    Client,
    assert_error,
    connect,
    files,
    jpeg,
    png,
    running,
)


def huge_png(side: int = 10_000) -> bytes:
    """A hundred megapixels of black in about ten kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "media_type",
    [
        *("image/png", "image/jpeg", "image/jpg", "image/pjpeg", "image/heic", "image/svg+xml", "Image/PNG", "image/*"),
        *("application/octet-stream", "application/dicom", "application/x-raw-disk-image", "application/zip"),
        *("text/plain; charset=undefined", "", ";;", "nonsense", " image/png ", b"\xff\xfe"),
    ],
)
@pytest.mark.parametrize("encode", [png, jpeg])
def test_a_raw_image_is_answered_with_any_content_type(client: Client, encode: Any, media_type: str | bytes) -> None:
    response = client.post("/v1/predict", content=encode(), headers={"Content-Type": media_type})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer) == {
        *("request_id", "decision", "label", "confidence", "probabilities", "ood_score", "chest_ct"),
        *("prediction_set", "between", "reasons", "warnings", "model", "disclaimer"),
    }
    assert answer["label"] == "large_cell_carcinoma"
    assert answer["confidence"] == answer["probabilities"]["large_cell_carcinoma"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert (answer["model"], answer["disclaimer"]) == (TAG, DISCLAIMER)


def test_a_form_is_answered_like_the_raw_image(client: Client) -> None:
    form = client.post("/v1/predict", files=files("image", png())).json()
    raw = client.post("/v1/predict", content=png(), headers={"Content-Type": "image/png"}).json()
    assert {**form, "request_id": ""} == {**raw, "request_id": ""}


@pytest.mark.parametrize(
    ("picture", "decision", "reason"),
    [
        (narrow_picture(), "reject", "not_chest_ct"),
        (unfamiliar_picture(), "refer", "unfamiliar"),
    ],
    ids=["rejected", "unfamiliar"],
)
def test_a_rejected_or_unfamiliar_image_has_no_label_and_is_counted_so(
    client: Client, picture: NDArray[np.uint8], decision: str, reason: str
) -> None:
    def counts() -> list[float]:
        labels = {"predictions": {"label": "none"}, "reasons": {"reason": reason}}
        return [
            REGISTRY.get_sample_value(f"chestct_{name}_total", {"decision": decision, **label}) or 0
            for name, label in labels.items()
        ]

    before = counts()
    answer = client.post("/v1/predict", files=files("image", encode_png(picture[:, :, 0]))).json()
    assert (answer["decision"], answer["reasons"]) == (decision, [reason])
    assert (answer["label"], answer["confidence"]) == (None, None)
    assert (answer["prediction_set"], answer["between"]) == ([], [])
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert answer["warnings"] == ["meaningless_probabilities"]
    assert (answer["chest_ct"] < CHEST_CT_LIMIT) == (decision == "reject")
    assert counts() == [count + 1 for count in before]


def test_an_image_that_breaks_input_rules_is_rejected_with_the_reason_of_each_rule(client: Client) -> None:
    strip = Image.merge("RGB", [Image.fromarray(tiny_picture(0)[:, :, 0]).resize((200, 20))] * 3)
    strip.paste((255, 0, 0), (0, 0, 100, 20))
    buffer = BytesIO()
    strip.save(buffer, "PNG")
    answer = client.post("/v1/predict", files=files("image", buffer.getvalue())).json()
    assert (answer["decision"], answer["label"]) == ("reject", None)
    assert answer["reasons"] == ["not_grey", "extreme_aspect", "not_chest_ct"]
    words = client.get("/v1/model").json()["rules"]
    assert "a CT slice is grey" in words["not_grey"]


def test_a_close_call_names_both_classes(client: Client) -> None:
    both = np.maximum(tiny_picture(0), tiny_picture(3))[:, :, 0]
    answer = client.post("/v1/predict", files=files("image", encode_png(both))).json()
    assert (answer["decision"], answer["reasons"]) == ("refer", ["two_cancers"])
    assert set(answer["between"]) == {"adenocarcinoma", "squamous_cell_carcinoma"}


def test_an_explanation_is_given_on_request(client: Client) -> None:
    explained = client.post("/v1/predict?explain=true", files=files("image", png())).json()
    assert set(explained["heatmaps"]) == set(explained["probabilities"])
    assert "preview" in explained
    plain = client.post("/v1/predict?explain=false", files=files("image", png())).json()
    assert not {"heatmaps", "preview"} & set(plain)


@pytest.mark.parametrize(
    "query",
    ["explain=yes", "explain=", "explain=true&explain=true", "explian=true", "window_center=40&window_width=400"],
)
def test_a_bad_query_is_refused(client: Client, query: str) -> None:
    response = client.post(f"/v1/predict?{query}", files=files("image", png()))
    assert_error(response, 400, "invalid_query", "expected", "got")


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        (b"", 400, "empty_body", "empty"),
        (b"this is text", 422, "undecodable_image", "12 bytes"),
        (png()[:-30], 422, "undecodable_image", "truncated"),
        (jpeg()[:-30], 422, "undecodable_image", "runcated"),
        (huge_png(), 413, "image_too_large", "at most 16777216 pixels"),
    ],
    ids=["empty", "text", "truncated PNG", "truncated JPEG", "100 megapixels"],
)
def test_a_bad_image_is_refused_and_the_next_good_one_answered(
    client: Client, body: bytes, status: int, code: str, word: str
) -> None:
    response = client.post("/v1/predict", content=body, headers={"Content-Type": "application/octet-stream"})
    assert_error(response, status, code, "expected" if code != "undecodable_image" else "", word)
    if body:
        assert_error(client.post("/v1/predict", files=files("image", body)), status, code, word)
    assert client.post("/v1/predict", files=files("image", png())).status_code == 200


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"files": files("picture", png())}, ("'image'", "'picture'")),
        ({"files": files("image", png(), png())}, ("got more",)),
        ({"files": [("image", (None, b"text"))]}, ("'image'", "file", "text")),
        ({"files": [*files("image", png()), ("note", (None, b"text"))]}, ("'note'",)),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, ("boundary",)),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, ("'image'",)),
        ({"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, ("got none",)),
    ],
    ids=["name", "two", "text", "stray", "no boundary", "no form", "no field"],
)
def test_a_bad_form_is_refused(client: Client, request_: dict[str, Any], words: tuple[str, ...]) -> None:
    assert_error(client.post("/v1/predict", **request_), 400, "invalid_form", "expected", *words)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
def test_a_body_over_the_limit_is_refused_by_its_announced_length(client: Client, path: str) -> None:
    response = client.post(path, files=files("images", bytes(LIMIT)))
    assert_error(response, 413, "body_too_large", f"at most {LIMIT} bytes")


def test_a_body_over_the_limit_is_refused_before_it_is_read_to_its_end(model: tuple[GatedEngine, ModelCard]) -> None:
    async def run() -> tuple[httpx.Response, int]:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(100):
                sent += LIMIT // 4
                yield bytes(LIMIT // 4)

        async with running(model) as app, connect(RequestRecording(app)) as client:
            response = await client.post("/v1/predict", content=body(), headers={"Content-Type": "image/png"})
        return response, sent

    response, sent = asyncio.run(run())
    assert_error(response, 413, "body_too_large", f"at most {LIMIT} bytes")
    assert sent <= 2 * LIMIT


def test_a_batch_has_one_outcome_per_image_in_order(client: Client) -> None:
    response = client.post("/v1/predict/batch", files=files("images", png(2), b"text", png(0)))
    assert response.status_code == 200
    first, second, third = response.json()["outcomes"]
    assert (first["label"], third["label"]) == ("normal", "adenocarcinoma")
    assert second["error"]["code"] == "undecodable_image"
    assert response.json()["disclaimer"] == DISCLAIMER
    ids = {first["request_id"], second["error"]["request_id"], response.json()["request_id"]}
    assert ids == {response.headers["X-Request-ID"]}


def test_a_batch_may_be_longer_than_the_queue(model: tuple[GatedEngine, ModelCard]) -> None:
    settings = SETTINGS.model_copy(update={"max_images": 64, "max_body_bytes": 1 << 20})
    app_files = files("images", *(png(index % 4) for index in range(40)))

    async def run() -> httpx.Response:
        async with running(model, settings) as app, connect(RequestRecording(app)) as client:
            return await client.post("/v1/predict/batch", files=app_files)

    labels = [outcome.get("label") for outcome in asyncio.run(run()).json()["outcomes"]]
    assert labels == [model[1].classes[index % 4] for index in range(40)]


@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_of_no_or_too_many_images_is_refused(client: Client, count: int) -> None:
    request: dict[str, Any] = {"files": files("images", *[png()] * count)}
    if not count:
        request = {"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    assert_error(client.post("/v1/predict/batch", **request), 400, "invalid_form", "1 to 4 files")


def test_the_model_is_described(client: Client, model: tuple[GatedEngine, ModelCard]) -> None:
    about = client.get("/v1/model").json()
    rules, warnings, tag = (about.pop(name) for name in ("rules", "warnings", "model"))
    assert ModelCard.model_validate_json(json.dumps(about)) == model[1]
    assert (rules, warnings, tag) == ({rule.name: rule.words for rule in RULES}, WARNINGS, TAG)


def test_the_counted_memory_of_a_body_is_what_it_takes(model: tuple[GatedEngine, ModelCard]) -> None:
    class Watched(MemoryBudget):
        most = 0

        def reserve(self, holder: Holder, size: int) -> None:
            super().reserve(holder, size)
            self.most = max(self.most, self.used)

    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png()).decode()]}
    bodies: list[tuple[float, str, dict[str, Any]]] = [
        (1, "/v1/predict", {"content": png()}),
        (2, "/v1/predict", {"files": files("image", png())}),
        (2, "/v1/predict/batch", {"files": files("images", png())}),
        (3.75, "/v2/models/chestct/infer", {"json": {"inputs": [tensor]}}),
    ]

    async def run(path: str, arguments: dict[str, Any]) -> tuple[int, int]:
        memory = Watched()
        async with running(model) as app, connect(RequestRecording(app, memory)) as client:
            answer = await client.post(path, **arguments)
        assert answer.status_code == 200, answer.text
        assert memory.used == 0
        return memory.most, int(answer.request.headers["Content-Length"])

    for factor, path, arguments in bodies:
        counted, length = asyncio.run(run(path, arguments))
        assert counted == REQUEST_BYTES + math.ceil(factor * length)


def test_an_internal_failure_is_logged_and_tells_the_client_nothing(
    client: Client, model: tuple[GatedEngine, ModelCard], caplog: pytest.LogCaptureFixture
) -> None:
    model[0].fails = True
    try:
        response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-ID": "r-500"})
    finally:
        model[0].fails = False
    assert_error(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert "r-500" in caplog.text
    assert client.post("/v1/predict", files=files("image", png())).status_code == 200


def test_a_form_leaves_no_file_behind(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))  # a read-only root file system
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert client.post("/v1/predict", files=files("image", encode_png(noise))).status_code == 200
