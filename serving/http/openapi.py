"""The OpenAPI document: what each route takes and answers, with schemas from the models that answer."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from chestct.card import LAYOUT, Frozen, ModelCard
from chestct.image import Facts, encode_png
from chestct.prediction import RULES, WARNINGS, Prediction, decide
from serving import open_inference
from serving.http import bentoml_api, v1, v2
from serving.http.error_boundary import TIMEOUT
from serving.http.request_recording import REQUEST_ID
from serving.inference.window import CENTERS, LUNG, WIDTHS, WINDOW_PARAMETERS
from serving.settings import Settings
from serving.tensors import IMAGE, Datatype

Json = dict[str, Any]
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
_REFERENCE: Final = "#/components/schemas/{model}"
_FILE: Final = {"type": "string", "format": "binary", "description": "A PNG, JPEG or DICOM file, known by its content."}

_OIP: Final = "Open Inference Protocol"
_HEADERS: Final = {
    REQUEST_ID: {"description": "The request's id: the client's own or a new one.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to send a key, as RFC 6750 has it.", "schema": {"type": "string"}},
}
_REQUEST_ID: Final = {
    "name": REQUEST_ID,
    "in": "header",
    "description": "Your own id for the request, up to 128 printable ASCII characters; it comes back.",
    "schema": {"type": "string"},
}
_TIMEOUT: Final = {
    "name": TIMEOUT,
    "in": "header",
    "description": "Seconds after which you no longer wait: what is not answered by then is not worked on, but 503 "
    "`client_deadline_exceeded`.",
    "schema": {"type": "number", "minimum": 0.01, "maximum": 600},
}
_EXPLAIN: Final = {
    "name": "explain",
    "in": "query",
    "description": "Whether to add `heatmaps` and `preview`.",
    "schema": {"type": "boolean"},
}
_WINDOW: Final = tuple(
    {
        "name": name,
        "in": "query",
        "description": f"Of the window for DICOM files: its {what} in Hounsfield units; {default} unless both come.",
        "schema": {"type": "number", "minimum": low, "maximum": high},
    }
    for name, what, default, (low, high) in zip(
        WINDOW_PARAMETERS, ("center", "width"), map(int, LUNG), (CENTERS, WIDTHS), strict=True
    )
)
_KEY: Final = "key"
_JSON_LENGTH: Final = {
    "name": v2.JSON_LENGTH,
    "in": "header",
    "description": "With the binary tensor extension: the length of the JSON at the start; 0: an image file alone.",
    "schema": {"type": "integer", "minimum": 0},
}
_WHY: Final = {
    400: "The request is not as described.",
    401: "This service asks for an API key, and none came that it knows.",
    403: "The API key is for other routes.",
    404: "Another model or version is served.",
    408: "The body came too slowly.",
    413: "The body, its JSON or an image is too large.",
    415: "Another content type is expected, or the body is compressed.",
    422: "The image can't be decoded, or is a DICOM file of something else than one CT slice.",
    429: "Too many images wait, or bodies take too much memory.",
    500: "The service failed; its log says why.",
    503: "The model is loading, the service is stopping, or the answer took too long.",
}


class Error(Frozen):
    code: str
    """For programs, such as `undecodable_image`."""
    message: str
    """For people: what was expected and what came."""
    request_id: str


class ErrorAnswer(Frozen):
    error: Error


class BatchAnswer(Frozen):
    request_id: str
    disclaimer: str
    outcomes: tuple[Prediction | ErrorAnswer, ...]
    """One an image, in order."""


class ModelAnswer(ModelCard):
    model: str
    """Tag in the BentoML model store."""
    rules: dict[str, str]
    """Each rule that can stand in a prediction's `reasons`, in words."""
    warnings: dict[str, str]
    """Each warning that can stand in a prediction's `warnings`, in words."""


class ServerMetadata(Frozen):
    name: str
    version: str
    extensions: tuple[str, ...]


class InferInput(Frozen):
    name: Literal["image", "pixels"]
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[tuple[int, ...], Field(min_length=1)]
    parameters: dict[str, Any] | None = None
    """`binary_data_size`: the data follows the JSON, in so many bytes."""
    data: list[Any] | None = None
    """`image`: each file in base64; `pixels`: grey levels, nested or flat."""


class InferOutput(Frozen):
    name: str
    parameters: dict[str, Any] | None = None
    """`binary_data`: whether the data shall follow the JSON."""


class InferRequest(Frozen):
    id: Annotated[str, Field(max_length=v2.MAX_ID)] = ""
    parameters: dict[str, Any] | None = None
    """`window_center` and `window_width`: the window for DICOM files; `binary_data_output`."""
    inputs: Annotated[tuple[InferInput, ...], Field(min_length=1)]
    """Exactly one of `image` and `pixels`."""
    outputs: tuple[InferOutput, ...] = ()
    """None: all but `heatmaps` and `preview`."""


class InferTensor(Frozen):
    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferAnswer(Frozen):
    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: tuple[InferTensor, ...]


class InferError(Frozen):
    error: str
    """`code: message`."""


_MODELS: Final[tuple[type[BaseModel], ...]] = (
    *(Prediction, ErrorAnswer, BatchAnswer, ModelAnswer),
    *(ServerMetadata, open_inference.ModelMetadata, InferRequest, InferAnswer, InferError),
)


def document(card: ModelCard, tag: str, settings: Settings, bentoml: Json) -> Json:
    """OpenAPI 3.1 for the service with this model; `bentoml` is BentoML's own document of it, OpenAPI 3.0.

    What stands there of BentoML's probes and its API is taken over; its schemas hold a `type: null`, which is no more
    than OpenAPI 3.1 allows, and its description links to BentoML's own pages.
    """
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REFERENCE)
    prediction = _example(card, tag)
    refused = {
        "error": {
            "code": "undecodable_image",
            "message": "expected a PNG or JPEG image or a DICOM file, got 12 bytes that are none of them",
            "request_id": "scan-17",
        }
    }
    image = base64.b64encode(encode_png(np.zeros((card.input.height, card.input.width), np.uint8))).decode("ascii")
    paths = {
        "/v1/predict": {"post": _predict(prediction)},
        "/v1/predict/batch": {"post": _predict_batch(prediction, refused, settings)},
        "/v1/model": {"get": _model(card, tag)},
        bentoml_api.ROUTE: {"post": _classify(bentoml, prediction, refused, image)},
        **_oip(card, tag, prediction, image),
        **_pages(),
        **_probes(bentoml),
    }
    for operation in (operation for item in paths.values() for operation in item.values()):
        if "401" in operation["responses"]:
            operation["security"] = [{_KEY: []}] if settings.api_keys_file else [{}, {_KEY: []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Chest Cancer Classification System",
            "version": tag,
            "description": f"Which a chest-CT slice shows: {', '.join(card.titles.values())}. {card.disclaimer}",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "headers": _HEADERS,
            "securitySchemes": {
                _KEY: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, where the service asks for one.",
                }
            },
        },
    }


def _example(card: ModelCard, tag: str) -> Json:
    """What this model would answer for a clear case of its first class."""
    rest = 0.09 / (len(card.classes) - 1)
    probabilities = np.array([0.91, *[rest] * (len(card.classes) - 1)], np.float32)
    layout = np.reshape(card.input_limits.average_layout, (LAYOUT, LAYOUT))
    facts = Facts(width=512, height=512, colour=0.0, contrast=64.0, frame=0.0, layout=layout)
    prediction = decide(card, probabilities, card.thresholds.ood_limit / 2, facts, request_id="scan-17", model=tag)
    return prediction.model_dump(mode="json", exclude={"heatmaps", "preview"})


def _predict(prediction: Json) -> Json:
    raw = {media_type: {"schema": _FILE} for media_type in v1.IMAGE_TYPES}
    content = {**raw, v1.MULTIPART: {"schema": _form("image", _FILE)}}
    words = "The file alone, or a form. Of a file the bytes decide what it is, not the type that it is sent as."
    return {
        "operationId": "predict",
        "tags": ["predict"],
        "summary": "Classify one image",
        "parameters": [_REQUEST_ID, _TIMEOUT, _EXPLAIN, *_WINDOW],
        "requestBody": {"description": words, "required": True, "content": content},
        "responses": {**_good("Prediction", prediction), **_errors(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)},
    }


def _predict_batch(prediction: Json, refused: Json, settings: Settings) -> Json:
    images = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": settings.max_images}
    answer = {"request_id": "scan-17", "disclaimer": prediction["disclaimer"], "outcomes": [prediction, refused]}
    return {
        "operationId": "predict_batch",
        "tags": ["predict"],
        "summary": "Classify many images; each has an outcome of its own, in order",
        "parameters": [_REQUEST_ID, _TIMEOUT, _EXPLAIN, *_WINDOW],
        "requestBody": {"required": True, "content": {v1.MULTIPART: {"schema": _form("images", images)}}},
        "responses": {**_good("BatchAnswer", answer), **_errors(400, 401, 403, 408, 413, 415, 429, 500, 503)},
    }


def _model(card: ModelCard, tag: str) -> Json:
    example = {
        "model": tag,
        **card.model_dump(mode="json"),
        "rules": {rule.name: rule.words for rule in RULES},
        "warnings": WARNINGS,
        "metrics": {},
    }
    return {
        "operationId": "model",
        "tags": ["model"],
        "summary": "The model's card: classes, figures with intervals, thresholds, lineage",
        "parameters": [_REQUEST_ID],
        "responses": {**_good("ModelAnswer", example), **_errors(401, 403, 503)},
    }


def _classify(bentoml: Json, prediction: Json, refused: Json, image: str) -> Json:
    """BentoML's own description of its API, with what it can't know: the outcomes and the errors."""
    operation = bentoml["paths"][bentoml_api.ROUTE]["post"]
    body = {"schema": operation["requestBody"]["content"][JSON]["schema"], "example": {"images": [image]}}
    outcomes = {"type": "array", "items": {"anyOf": [_reference("Prediction"), _reference("ErrorAnswer")]}}
    return {
        "operationId": "classify",
        "tags": ["predict"],
        "summary": "Classify images for bentoml.SyncHTTPClient and AsyncHTTPClient",
        "description": operation["description"],
        "parameters": [_REQUEST_ID, _TIMEOUT],
        "requestBody": {"required": True, "content": {JSON: body}},
        "responses": {
            "200": _answer("One outcome an image, in order.", {"schema": outcomes, "example": [prediction, refused]}),
            **_errors(400, 401, 403, 408, 413, 415, 429, 500, 503),
        },
    }


def _oip(card: ModelCard, tag: str, prediction: Json, image: str) -> Json:
    """The Open Inference Protocol v2."""
    version = open_inference.version(tag)
    metadata = open_inference.metadata(card, tag).model_dump(mode="json")
    request = {
        "id": "scan-17",
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [1], "data": [image]}],
        "outputs": [{"name": "label"}],
    }
    label = {"name": "label", "datatype": "BYTES", "shape": [1], "data": [prediction["label"]]}
    answer = {"model_name": card.name, "model_version": version, "id": "scan-17", "outputs": [label]}
    binary = {"schema": {"type": "string", "format": "binary", "description": "The JSON, then the tensors' raw data."}}
    model = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": card.name}
    of_version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}, "example": version}
    paths: Json = {
        "/v2": {
            "get": _oip_get("server_metadata", "The server and its extensions", "ServerMetadata", errors=(401, 403))
        },
        "/v2/health/live": {"get": _oip_get("server_live", "The process answers")},
        "/v2/health/ready": {"get": _oip_get("server_ready", "The model is warm", errors=(503,))},
    }
    for path, suffix, parameters in (
        ("/v2/models/{name}", "", [model]),
        ("/v2/models/{name}/versions/{version}", "_version", [model, of_version]),
    ):
        paths[path] = {
            "get": _oip_get(
                f"model_metadata{suffix}",
                "The model's tensors",
                "ModelMetadata",
                metadata,
                parameters,
                (401, 403, 404, 503),
            )
        }
        paths[f"{path}/ready"] = {
            "get": _oip_get(f"model_ready{suffix}", "The model is warm", None, None, parameters, (401, 403, 404, 503))
        }
        good = _good("InferAnswer", answer)
        good["200"]["content"][BINARY] = binary
        paths[f"{path}/infer"] = {
            "post": {
                "operationId": f"infer{suffix}",
                "tags": [_OIP],
                "summary": "Classify the images of one input tensor; one bad image fails the call",
                "parameters": [_REQUEST_ID, _TIMEOUT, _JSON_LENGTH, *parameters],
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": _reference("InferRequest"), "example": request}, BINARY: binary},
                },
                "responses": {**good, **_errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, model="InferError")},
            }
        }
    return paths


def _oip_get(
    operation: str,
    summary: str,
    model: str | None = None,
    example: Json | None = None,
    parameters: Sequence[Json] = (),
    errors: Sequence[int] = (),
) -> Json:
    good = _good(model, example) if model else {"200": _answer(summary, {"schema": {"type": "object"}})}
    return {
        "operationId": operation,
        "tags": [_OIP],
        "summary": summary,
        "parameters": [_REQUEST_ID, *parameters],
        "responses": {**good, **_errors(*errors, model="InferError")},
    }


def _pages() -> Json:
    html = {"text/html": {"schema": {"type": "string"}}}
    json = {JSON: {"schema": {"type": "object"}}}
    return {
        path: {
            "get": {
                "operationId": operation,
                "tags": ["pages"],
                "summary": summary,
                "responses": {"200": {"description": "It.", "content": content}},
            }
        }
        for path, operation, summary, content in (
            ("/", "page", "The page for people: drop a picture on it", html),
            ("/docs", "docs", "This document, readable", html),
            ("/docs.json", "docs_json", "This document", json),
            ("/schema.json", "schema_json", "What BentoML's clients read first", json),
        )
    }


def _probes(bentoml: Json) -> Json:
    """BentoML's own: /livez, /readyz, /healthz and /metrics; what they answer is text."""
    paths = {path: item for path, item in bentoml["paths"].items() if path != bentoml_api.ROUTE}
    for path, item in paths.items():
        operation = item["get"]
        operation["operationId"] = path.strip("/")
        operation["tags"] = ["operations"]
        operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return paths


def _reference(model: str) -> Json:
    return {"$ref": _REFERENCE.format(model=model)}


def _form(name: str, field: Json) -> Json:
    return {"type": "object", "properties": {name: field}, "required": [name], "additionalProperties": False}


def _answer(description: str, content: Json) -> Json:
    headers = {REQUEST_ID: {"$ref": f"#/components/headers/{REQUEST_ID}"}}
    return {"description": description, "headers": headers, "content": {JSON: content}}


def _good(model: str, example: Json | None) -> Json:
    content = {"schema": _reference(model)} | ({"example": example} if example else {})
    return {"200": _answer("The answer.", content)}


def _errors(*statuses: int, model: str = "ErrorAnswer") -> Json:
    answers = {str(status): _answer(_WHY[status], {"schema": _reference(model)}) for status in statuses}
    for status in {"401", "403"} & set(answers):
        answers[status]["headers"] |= {"WWW-Authenticate": {"$ref": "#/components/headers/WWW-Authenticate"}}
    for status in {"429", "503"} & set(answers):
        answers[status]["headers"] |= {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answers
