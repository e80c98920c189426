"""Requests that are refused for their type, encoding, path, method, headers or query, each in the error schema."""

import httpx
import pytest
from starlette.requests import Request

from serving.http.v2 import JSON_LENGTH
from tests.serving.http.client import Client, assert_error, files, form_of, png

NO_IMAGE = (
    *("application/json", "application/x-www-form-urlencoded", "text/html; charset=idna", "Application/XML"),
    *("application/dicom+json", "multipart/mixed; boundary=b"),
)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        *(("/v1/predict", media_type) for media_type in NO_IMAGE),
        *(("/v1/predict/batch", media_type) for media_type in (*NO_IMAGE, "image/png", "text/plain", "x" * 9000)),
    ],
)
def test_another_content_type_is_refused(client: Client, path: str, media_type: str) -> None:
    response = client.post(path, content=png(), headers={"Content-Type": media_type})
    named = media_type.partition(";")[0].lower()[:64]
    assert_error(response, 415, "unsupported_media_type", "multipart/form-data", f"got {named}")
    assert ("curl" in response.text) == ("urlencoded" in media_type)


@pytest.mark.parametrize("kind", ["raw", "form", "batch", "protocol"])
@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ([("Content-Encoding", "gzip")], "gzip"),
        ([("Content-Encoding", "GZIP, identity")], "GZIP"),
        ([("Content-Encoding", "identity"), ("Content-Encoding", " br ")], "br"),
        ([("Content-Encoding", "x" * 9000)], "x" * 64),
        ([("Transfer-Encoding", "gzip, chunked")], "gzip"),
    ],
)
def test_a_compressed_body_is_refused_and_its_encoding_named(
    client: Client, kind: str, headers: list[tuple[str, str]], encoding: str
) -> None:
    response = ask_in_kind(client, kind, headers)
    assert response.status_code == 415
    assert "unsupported_encoding" in response.text
    assert f'got {encoding}"' in response.text


@pytest.mark.parametrize("kind", ["raw", "form", "batch", "protocol"])
@pytest.mark.parametrize("encoding", ["identity", "Identity", " IDENTITY ", "", "identity, identity"])
def test_a_body_with_an_identity_encoding_is_read(client: Client, kind: str, encoding: str) -> None:
    assert ask_in_kind(client, kind, [("Content-Encoding", encoding)]).status_code == 200


def ask_in_kind(client: Client, kind: str, headers: list[tuple[str, str]]) -> httpx.Response:
    """The same image as each kind of body."""
    if kind == "raw":
        return client.post("/v1/predict", content=png(), headers=headers)
    if kind == "form":
        return client.post("/v1/predict", files=files("image", png()), headers=headers)
    if kind == "batch":
        return client.post("/v1/predict/batch", files=files("images", png()), headers=headers)
    headers = [*headers, (JSON_LENGTH, "0")]
    return client.post("/v2/models/chestct/infer", content=png(), headers=headers)


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1", "/v1/", "/v1/nothing", "/v1/predict/", "//v1/predict", "/V1/model", "/v1/../v1/model"),
        *("/docs.json/", "/page", "/page/", "/page/nothing.js", "/page/own/1.png", "/page/samples", "/page/../http.py"),
        *("*", "/metrics\n", "/v1/predict\n", "/v1/model\n/", "/v2/models/chestct\n"),
        *("/\0", "/page/\0", "/\n", "/v1/mo\ndel", "/page/page.js\n", f"/page/{300 * 'x'}", "/\ufffd", "http://x/v1/y"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PROPFIND"])
def test_an_unknown_path_is_answered_in_the_error_schema(client: Client, method: str, path: str) -> None:
    response = client.raw(method, path)
    if path.startswith("/v2"):
        assert (response.status_code, response.json()["error"][:9]) == (404, "not_found")
    elif path.startswith("/page") and response.status_code == 405:  # of files only those that read are looked up
        assert_error(response, 405, "method_not_allowed", "expected GET, HEAD")
    else:
        assert_error(response, 404, "not_found", f"{method} {path}: Not Found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/predict", {"POST"}), ("/v1/model", {"GET", "HEAD"}), ("/", {"GET", "HEAD"}), ("/docs", {"GET", "HEAD"})],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_a_wrong_method_is_answered_in_the_error_schema(
    client: Client, path: str, allowed: set[str], method: str
) -> None:
    response = client.raw(method, path)
    if method in allowed:
        assert response.status_code == 200
    else:
        assert_error(response, 405, "method_not_allowed", f"{method} {path}: Method Not Allowed, expected ")
        assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("header", "value", "status", "code"),
    [
        ("Range", "bytes=x", 400, "invalid_request"),
        ("Range", "lines=1-2", 400, "invalid_request"),
        ("Range", "bytes=99999999-", 416, "invalid_range"),
        ("Range", f"bytes={400 * '9'}-{5000 * '9'}", 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js"])
def test_an_invalid_range_is_answered_in_the_error_schema(
    client: Client, path: str, header: str, value: str, status: int, code: str
) -> None:
    assert_error(client.raw("GET", path, [(header, value)]), status, code, f"GET {path}")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("Host", value) for value in ("[", "\xff", "", "a:b:c", "x" * 5000)),
        *(("If-Modified-Since", value) for value in ("soon", "Mon, 99 Foo 99999999999 99:99:99 GMT", "\xff")),
        *(("If-None-Match", value) for value in ("*x", "\xff")),
        *(("Accept-Encoding", value) for value in ("\xff", "gzip;q=x")),
        *(("Authorization", value) for value in ("\xff", "Bearer \xff", "Basic", "Bearer " + 5000 * "x")),
        *(("Cookie", value) for value in ("\xff", ";;=;")),
        *(("traceparent", value) for value in ("\xff", "00-0-0-0")),
    ],
)
def test_no_header_fails_the_service(client: Client, header: str, value: str) -> None:
    for path in ("/", "/page/page.js", "/v1/model", "/nothing"):
        assert client.raw("GET", path, [(header, value)]).status_code in (200, 404)


@pytest.mark.parametrize("query", ["%ff=1", "\xff", "explain=%00", "explain=%0a", "&&&=", "%", "a" * 60_000])
def test_no_query_fails_the_service(client: Client, query: str) -> None:
    assert_error(client.raw("POST", "/v1/predict", query=query), 400, "invalid_query", "expected")


def test_a_long_query_is_refused_without_being_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Request, "query_params", None)
    answer = client.raw("POST", "/v1/predict", query="explain=true&" + 1000 * "a&")
    assert_error(answer, 400, "invalid_query", "at most 256 bytes", "got 2013")


def test_blanks_around_a_header_s_value_are_ignored(client: Client) -> None:
    headers = [("X-Request-Timeout", " 5 \t"), ("X-Request-ID", "\tscan-17 "), ("Content-Encoding", " identity ")]
    response = client.raw("GET", "/v1/model", headers)
    assert (response.status_code, response.headers["X-Request-ID"]) == (200, "scan-17")
    form = form_of("image", png())
    response = client.raw(
        "POST", "/v1/predict", [*headers, ("Content-Type", "\tmultipart/form-data; boundary=b ")], form
    )
    assert response.json()["label"] == "large_cell_carcinoma"
