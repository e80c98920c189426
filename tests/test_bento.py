"""BentoML's own clients against a real service. One request's bad image does not affect the others."""

import asyncio
import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException, InvalidArgument

from chestct.image import encode_png
from serving.http import bentoml_api
from tests.graphs import tiny_picture
from tests.server import Server

URL = bentoml_api.ROUTE
get = partial(httpx.get, timeout=300)
post = partial(httpx.post, timeout=300)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def png(label: int) -> str:
    return encoded(encode_png(tiny_picture(label)[:, :, 0]))


@contextmanager
def nobody_connects() -> Iterator[str]:
    """The URL of a loopback port. Fails if anything connects to it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/slice.png"
        listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listener.accept()


def assert_refused(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["request_id"]) == (code, response.headers["X-Request-ID"])
    message: str = error["message"]
    return message


def test_the_client_gets_one_outcome_per_image_in_order(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url) as client:
        outcomes = client.classify(images=[png(2), encoded(b"text"), png(0)])
    assert [outcome.get("label") for outcome in outcomes] == ["normal", None, "adenocarcinoma"]
    assert outcomes[1]["error"]["code"] == "undecodable_image"
    assert len({outcome.get("request_id") or outcome["error"]["request_id"] for outcome in outcomes}) == 1


def test_the_answer_is_that_of_the_other_protocols(server: Server) -> None:
    image = base64.b64decode(png(1))
    raw = post(f"{server.url}/v1/predict", content=image, headers={"Content-Type": "image/png"}).json()
    with bentoml.SyncHTTPClient(server.url) as client:
        (outcome,) = client.classify(images=[png(1)])
    assert outcome["probabilities"] == pytest.approx(raw["probabilities"], abs=1e-5)
    assert {**outcome, "request_id": "", "probabilities": {}, "confidence": 0, "ood_score": 0} == {
        **raw,
        **{"request_id": "", "probabilities": {}, "confidence": 0, "ood_score": 0},
    }


def test_a_bad_image_does_not_affect_concurrent_requests(server: Server) -> None:
    """Each request has two images of its own. Every fourth request has a bad one, every seventh invalid base64."""

    def images(caller: int) -> list[str]:
        if caller % 7 == 3:
            return [png(0), "http://localhost/slice.png"]
        return [png(caller % 4), encoded(b"text") if caller % 4 == 1 else png((caller + 1) % 4)]

    async def ask() -> list[list[dict[str, object]] | BaseException]:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            return await asyncio.gather(*(client.classify(images=images(n)) for n in range(48)), return_exceptions=True)

    for caller, answer in enumerate(asyncio.run(ask())):
        if caller % 7 == 3:
            assert isinstance(answer, InvalidArgument)
            continue
        assert isinstance(answer, list), answer
        first, second = answer
        classes = list(first["probabilities"])  # type: ignore[call-overload]
        assert first["label"] == classes[caller % 4]
        if caller % 4 == 1:
            assert second["error"]["code"] == "undecodable_image"  # type: ignore[index]
            assert second["error"]["request_id"] == first["request_id"]  # type: ignore[index]
        else:
            assert second["label"] == classes[(caller + 1) % 4]


def test_a_url_is_refused_and_not_fetched(server: Server) -> None:
    with nobody_connects() as url:
        with bentoml.SyncHTTPClient(server.url) as client, pytest.raises(InvalidArgument, match="base64"):
            client.classify(images=[url])
        form = post(server.url + URL, data={"images": url})
        assert_refused(form, 415, "unsupported_media_type")
        multipart = post(server.url + URL, files={"images": (None, url)})
        assert_refused(multipart, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "EOF"),
        (b"\xff\xfe", "body"),
        (b"[]", "object"),
        (b"{}", "images"),
        (b'{"images": []}', "at least 1"),
        (b'{"images": [1]}', "got int"),
        (b'{"images": ["e"]}', "base64"),
        (b'{"images": [' + b",".join([b'"AAAA"'] * 65) + b"]}", "at most 64"),
        (b"[" * 100_000, "recursion"),
    ],
    ids=["cut", "no text", "list", "no images", "none", "number", "no base64", "too many", "deep"],
)
def test_a_bad_body_is_refused_in_our_error_schema(server: Server, body: bytes, word: str) -> None:
    response = post(server.url + URL, content=body, headers={"Content-Type": "application/json"})
    assert word in assert_refused(response, 400, "invalid_request")


def test_python_objects_are_refused_unread(server: Server) -> None:
    pickled = {"Content-Type": "application/vnd.bentoml+pickle"}
    response = post(server.url + URL, content=b"cos\nsystem\n", headers=pickled)
    assert_refused(response, 415, "unsupported_media_type")


def test_a_body_over_the_limit_is_refused_by_its_announced_length(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {URL} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_request_id_is_echoed_and_another_method_refused(server: Server) -> None:
    answer = post(server.url + URL, json={"images": [png(0)]}, headers={"X-Request-ID": "scan-17"})
    assert answer.headers["X-Request-ID"] == answer.json()[0]["request_id"] == "scan-17"
    assert "POST" in assert_refused(get(server.url + URL), 405, "method_not_allowed")


def test_an_unknown_argument_is_refused_and_named(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url) as client, pytest.raises((TypeError, BentoMLException)):
        client.classify(pictures=[png(0)])
