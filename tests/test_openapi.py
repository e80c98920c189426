"""/docs.json: it is valid and complete, its examples match, and the answers match it."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis import GenerationMode, checks
from starlette.routing import Mount, Route

from chestct.image import encode_png
from serving.http import v1
from serving.http.app import create_app
from serving.settings import Settings
from tests.graphs import tiny_picture
from tests.server import Server

Json = dict[str, Any]
EXAMPLES = 40
"""Requests that Schemathesis generates for each operation."""
PNG = encode_png(tiny_picture(1)[:, :, 0])


@pytest.fixture(scope="module")
def document(server: Server) -> Json:
    answer: Json = httpx.get(f"{server.url}/docs.json", timeout=300).json()
    return answer


def test_the_document_is_valid(document: Json) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_the_document_has_every_route_and_no_other(server: Server, document: Json) -> None:
    ours = {(verb, path) for path, verb in _routes(create_app(Settings.read()).routes)}
    bentoml = {("get", path) for path in ("/healthz", "/livez", "/readyz", "/schema.json")} | {("post", "/classify")}
    assert {(verb, path) for path, item in document["paths"].items() for verb in item} == ours | bentoml


def _routes(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _routes(route.routes or (), prefix + route.path)
        elif isinstance(route, Route):
            yield from ((prefix + route.path, verb.lower()) for verb in route.methods or () if verb != "HEAD")


def _contents(document: Json) -> Iterator[tuple[str, Json]]:
    """Every described body and answer, with its place in the document."""
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            for place, described in [("request", operation.get("requestBody", {})), *operation["responses"].items()]:
                for media_type, content in described.get("content", {}).items():
                    yield f"{verb} {path} {place} {media_type}", content


def _hold(instance: object, schema: Json, document: Json) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(instance)


def test_every_prediction_route_takes_a_deadline(document: Json) -> None:
    posts = {path for path, item in document["paths"].items() if "post" in item}
    timed = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if any(parameter["name"] == "X-Request-Timeout" for parameter in operation.get("parameters", ()))
    }
    assert timed == posts


def test_the_examples_match_their_schemas(document: Json) -> None:
    examples = {place: content for place, content in _contents(document) if "example" in content}
    assert len(examples) >= 10
    for content in examples.values():
        _hold(content["example"], content["schema"], document)


def test_the_example_requests_are_answered_as_described(server: Server, document: Json) -> None:
    asked = 0
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            url = server.url
            for parameter in operation.get("parameters", ()):
                path = path.replace(f"{{{parameter['name']}}}", str(parameter.get("example", "")))
            answer = httpx.request(verb, url + path, **_example_body(operation), timeout=300)
            assert answer.status_code == 200, (verb, path, answer.text)
            content = operation["responses"]["200"]["content"][answer.headers["Content-Type"].partition(";")[0]]
            if "json" in answer.headers["Content-Type"]:
                _hold(answer.json(), content["schema"], document)
            asked += 1
    assert asked > 15


def _example_body(operation: Json) -> Json:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        return {"json": content["application/json"]["example"]}
    if "multipart/form-data" in content:
        (name,) = content["multipart/form-data"]["schema"]["properties"]
        return {"files": {name: ("slice.png", PNG)}}
    return {}


def test_errors_are_answered_as_described(server: Server, document: Json) -> None:
    png = {"Content-Type": "image/png"}
    for path, arguments, status in (
        ("/v1/predict", {"content": b"text", "headers": png}, "422"),
        ("/v1/predict", {"content": b"", "headers": png}, "400"),
        ("/v1/predict?explain=perhaps", {"content": PNG, "headers": png}, "400"),
        ("/v1/predict/batch", {"content": PNG, "headers": png}, "415"),
        ("/classify", {"json": {"images": ["http://localhost/"]}}, "400"),
        ("/v2/models/chestct/infer", {"json": {"inputs": []}}, "400"),
        ("/v2/models/other/infer", {"json": {"inputs": []}}, "404"),
    ):
        answer = httpx.post(server.url + path, **arguments, timeout=300)
        assert answer.status_code == int(status), answer.text
        described = document["paths"][re.sub("models/[a-z]+", "models/{name}", path.partition("?")[0])]["post"]
        _hold(answer.json(), described["responses"][status]["content"]["application/json"]["schema"], document)


IMAGES = st.sampled_from([PNG, PNG[:-30], b"text"]) | st.binary(max_size=100)
for media_type in v1.IMAGE_TYPES:
    schemathesis.openapi.media_type(media_type, IMAGES)


def _no_server_error(context: Any, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """Schemathesis' own check, except that a deadline may be too short."""
    if response.status_code != 503 or "X-Request-Timeout" not in case.headers:
        checks.not_a_server_error(context, response, case)


def test_no_request_gets_a_5xx_or_an_undocumented_answer(server: Server, document: Json) -> None:
    schema = schemathesis.openapi.from_dict(document)
    described = [
        _no_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    with requests.Session() as session:
        for operation in (result.ok() for result in schema.get_all_operations()):

            @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
            @given(st.one_of(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
            def ask(case: schemathesis.Case) -> None:
                case.call_and_validate(server.url, session, checks=described)

            ask()
