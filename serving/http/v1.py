"""The routes of /v1: predictions in JSON, and the model's card."""

import json
import re
from functools import lru_cache
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router

from chestct.card import ModelCard
from chestct.prediction import RULES, WARNINGS, Prediction
from serving.api_keys import Keys
from serving.http.body import FORM_MEMORY, RAW_MEMORY, media_type, read_body, while_connected
from serving.http.errors import bad_request, describe, error_body, unsupported
from serving.http.form import read_files
from serving.http.readiness import ready_classifier
from serving.http.rendered import Rendered
from serving.http.require_api_key import require_api_key
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Overloaded

IMAGE_TYPES: Final = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")
"""Recommended types for an image. With any other type the bytes decide too, because clients often guess it."""
_NO_IMAGE: Final = re.compile("multipart/.*|text/(html|xml)|application/(.*json|.*xml|x-www-form-urlencoded)")
"""Types that no image has."""
MULTIPART: Final = "multipart/form-data"
OPTION: Final = "explain"
"""The query parameter of the two prediction routes."""
_LONGEST_QUERY: Final = 256
"""Most bytes of a query. The longest valid one has 13. A head has room for 15,000 parameters."""


def routes(keys: Keys | None) -> Mount:
    """The routes below /v1. Each route's name is its label in the metrics. With `keys` they require an API key."""
    answering = [
        Route("/predict", predict, methods=["POST"], name="/v1/predict"),
        Route("/predict/batch", predict_batch, methods=["POST"], name="/v1/predict/batch"),
        Route("/model", _model, methods=["GET"], name="/v1/model"),
    ]
    return Mount("/v1", Router(require_api_key(answering, keys, "v1"), redirect_slashes=False))


async def predict(request: Request) -> Response:
    """The prediction for the image of the body."""
    explain = _explain(request)
    classifier = ready_classifier(request)
    image = await _image(request, classifier.settings)
    prediction = await while_connected(request, classifier.classify(image, request.state.record, explain=explain))
    return Response(_json(prediction), media_type="application/json")


async def predict_batch(request: Request) -> Response:
    """The prediction or the error for each image of the form."""
    explain = _explain(request)
    classifier = ready_classifier(request)
    settings = classifier.settings
    if (kind := media_type(request)) != MULTIPART:
        raise unsupported((MULTIPART,), kind)
    body = await read_body(request, settings, FORM_MEMORY)
    images = read_files(request.headers["Content-Type"], body, "images", settings.max_images)
    del body
    record: RequestRecord = request.state.record
    outcomes = await while_connected(request, classifier.classify_many(images, record, explain=explain))
    if all(isinstance(outcome, Overloaded) for outcome in outcomes):
        raise outcomes[0]  # type: ignore[misc] # mypy does not narrow through all()
    parts = [
        _json(outcome)
        if isinstance(outcome, Prediction)
        else json.dumps(error_body(describe(outcome), record.request_id))
        for outcome in outcomes
    ]
    head = json.dumps({"request_id": record.request_id, "disclaimer": classifier.card.disclaimer})
    return Response(f'{head[:-1]}, "outcomes": [{", ".join(parts)}]}}', media_type="application/json")


async def _model(request: Request) -> Response:
    return _rendered_model(ready_classifier(request)).answer(request)


@lru_cache(maxsize=1)
def _rendered_model(classifier: Classifier) -> Rendered:
    return Rendered(describe_model(classifier.card, classifier.tag))


def describe_model(card: ModelCard, tag: str) -> dict[str, Any]:
    """The answer of /v1/model: the model card, and explanations of its rules and warnings."""
    rules = {rule.name: rule.words for rule in RULES}
    return {"model": tag, **card.model_dump(mode="json"), "rules": rules, "warnings": WARNINGS}


def _json(prediction: Prediction) -> str:
    extras = {"heatmaps", "preview"} if prediction.preview is None else None
    return prediction.model_dump_json(exclude=extras)


def _explain(request: Request) -> bool:
    """Whether to explain the answer."""
    if not (text := request.scope["query_string"]):
        return False
    if len(text) > _LONGEST_QUERY:
        raise bad_request("invalid_query", f"expected a query of at most {_LONGEST_QUERY} bytes, got {len(text)}")
    query = request.query_params
    if unknown := sorted(set(query) - {OPTION}):
        raise bad_request("invalid_query", f"expected no query parameter but {OPTION}, got {', '.join(unknown)}")
    values = query.getlist(OPTION) or ["false"]
    if values not in (["true"], ["false"]):
        raise bad_request("invalid_query", f"{OPTION}: expected true or false, got {', '.join(values)!r}")
    return values == ["true"]


async def _image(request: Request, settings: Settings) -> bytes:
    """The one encoded image of a raw or multipart body."""
    kind = media_type(request)
    if kind != MULTIPART and _NO_IMAGE.fullmatch(kind):
        raise unsupported((*IMAGE_TYPES, MULTIPART), kind)
    body = await read_body(request, settings, FORM_MEMORY if kind == MULTIPART else RAW_MEMORY)
    if kind != MULTIPART:
        return body
    (image,) = read_files(request.headers["Content-Type"], body, "image", 1)
    return image
