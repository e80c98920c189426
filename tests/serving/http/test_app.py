"""The HTTP app: what all its routes share, and the page."""

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest

from chestct.card import ModelCard
from chestct.image import encode_png
from chestct.watched import EDGES
from serving.http import page_routes
from serving.http.app import create_app
from serving.http.page_routes import PAGE
from serving.http.request_recording import RequestRecording
from tests.serving.gated_engine import GatedEngine
from tests.serving.http.client import SETTINGS, Client, ask, files, png


def test_a_request_id_is_echoed_everywhere(client: Client) -> None:
    response = client.post("/v1/predict", files=files("image", png()), headers={"X-Request-ID": "abc-1"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "abc-1"


@pytest.mark.parametrize("wanted", ["", "x" * 129, "tab\there", "caf\u00e9".encode("latin-1")])
def test_a_request_id_that_can_t_be_trusted_is_replaced(client: Client, wanted: str | bytes) -> None:
    response = client.get("/v1/model", headers={"X-Request-ID": wanted})
    assert len(response.headers["X-Request-ID"]) == 32


def test_documents_are_rendered_once_and_not_sent_again_to_clients_that_have_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {path: client.get(path) for path in ("/v1/model", "/docs.json", "/v2/models/chestct")}
    monkeypatch.setattr("json.dumps", None)
    for path, answer in first.items():
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        again = client.get(path)
        assert (again.content, again.headers["ETag"]) == (answer.content, answer.headers["ETag"])
        unchanged = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_every_answer_carries_the_security_headers(client: Client) -> None:
    for response in (client.get("/"), client.get("/page/page.js"), client.get("/v1/model"), client.get("/v1/nothing")):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_and_its_files_are_served_and_no_other_files(client: Client) -> None:
    index = client.get("/")
    assert index.headers["Content-Type"].startswith("text/html")
    assert "Not a medical device" in index.text
    assert client.get("/page/page.css").headers["Content-Type"].startswith("text/css")
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/app.py"):
        assert client.get(path).status_code == 404


def test_metrics_are_labelled_by_route_not_by_path(client: Client, model: tuple[GatedEngine, ModelCard]) -> None:
    client.post("/v1/predict", files=files("image", png()))
    for index in range(20):
        client.get(f"/v1/scan-{index}")
    text = client.get("/metrics").text
    assert "scan" not in text
    assert 'chestct_requests_total{code="200",protocol="http",route="/v1/predict"}' in text
    assert 'chestct_requests_total{code="404",protocol="http",route="other"}' in text
    for name in (
        "chestct_stage_seconds_count",
        "chestct_batch_size_count",
        "chestct_queue_depth",
        "chestct_predictions",
        "chestct_confidence_count",
        "chestct_familiarity_count",
        f'chestct_model_info{{data_digest="{model[1].lineage.data_digest}"',
    ):
        assert name in text


def test_an_image_is_counted_in_the_bins_of_the_watched_facts(client: Client) -> None:
    def counted() -> dict[str, float]:
        lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    levels = np.tile(np.arange(350) % 200, (300, 1)).astype(np.uint8)
    before = counted()
    assert client.post("/v1/predict", files=files("image", encode_png(levels))).status_code == 200
    after = counted()
    gained = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    side = {name: value for name, value in gained.items() if name.startswith("chestct_input_side_")}
    bounds = ("380.0", "400.0", "420.0", "460.0", "600.0", "+Inf")
    by_hand = {f'chestct_input_side_bucket{{le="{bound}"}}': 1 for bound in bounds}
    assert side == {**by_hand, "chestct_input_side_count": 1, "chestct_input_side_sum": 350}
    assert [gained[f"chestct_{name}_count"] for name in EDGES] == [1] * len(EDGES)


def test_each_request_leaves_one_line_of_json_without_its_content(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {"User-Agent": "secret-agent", "Cookie": "secret-cookie"}
    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        client.post("/v1/predict", files=[("image", ("secret-name.png", png()))], headers=secrets)
        client.post("/v1/predict", content=b"secret-bytes", headers={"Content-Type": "image/png"})
        client.get("/v1/model", headers={"X-Request-ID": "r-77"})
        client.get("/v1/a%0Aforged line", headers={"X-Request-ID": "r-78"})
    answered, refused, model, unknown = (json.loads(record.getMessage()) for record in caplog.records)
    assert (answered["route"], answered["code"], answered["outcome"]) == ("/v1/predict", "200", "answered")
    stages = [answered[f"{stage}_seconds"] for stage in ("decode", "queue", "infer")]
    assert min(stages) >= 0
    assert answered["images"] == 1
    assert sum(stages) <= answered["total_seconds"]
    assert (refused["code"], refused["outcome"]) == ("422", "undecodable_image")
    assert (model["request_id"], model["route"]) == ("r-77", "/v1/model")
    assert (unknown["request_id"], unknown["route"], unknown["code"]) == ("r-78", "other", "404")
    assert "secret" not in caplog.text
    assert "forged" not in caplog.text


@pytest.mark.parametrize("header", ["", "de-CH, de;q=0.9, en;q=0.8", "xx", "../app", "EN-gb"])
def test_the_page_s_words_come_in_a_language_that_is_there(client: Client, header: str) -> None:
    response = client.get("/page/text.js", headers={"Accept-Language": header})
    assert response.text == (PAGE / "text" / "en.js").read_text(encoding="utf-8")
    assert response.headers["Content-Language"] == "en"
    assert "Accept-Language" in response.headers["Vary"]
    assert response.headers["Content-Type"].startswith("text/javascript")


def test_a_long_header_or_path_costs_no_look_at_the_disk_for_each_of_its_parts(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    for function in (os.stat, os.lstat):
        monkeypatch.setattr(os, function.__name__, partial(_note_and_call, looks, function))
    languages = ",".join(f"{first}{second}" for first in ascii_lowercase for second in ascii_lowercase)
    assert client.get("/page/text.js", headers={"Accept-Language": languages}).status_code == 200
    assert client.get(f"/page/{'a/' * 1000}").status_code == 404
    assert len(looks) < 20


def _note_and_call(looks: list[Any], function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    looks.append(arguments)
    return function(*arguments, **options)


def test_another_language_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "de.js").write_text("export const TEXT = {};", encoding="utf-8")
    (tmp_path / "en.js").write_text("", encoding="utf-8")
    monkeypatch.setattr(page_routes, "TEXTS", tmp_path)
    app = RequestRecording(create_app(SETTINGS))
    response = ask(app, "/page/text.js", "GET", **{"Accept-Language": "fr, de-CH;q=0.9, en;q=0.8"})
    assert (response.text, response.headers["Content-Language"]) == ("export const TEXT = {};", "de")
