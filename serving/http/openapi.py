"""Assembles the OpenAPI document: prose from openapi.yaml, schemas from pydantic models, values from the model card."""

import base64
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chestct.card import LAYOUT, ModelCard
from chestct.document import Frozen
from chestct.image import Facts, encode_png
from chestct.prediction import Prediction, decide
from chestct.standard_picture import AIR, TISSUE
from chestct.store import version_of
from serving import open_inference
from serving.http import v1, v2
from serving.http.errors import OIP
from serving.settings import Settings
from serving.tensors import Datatype

Json = dict[str, Any]


class Error(Frozen):
    code: str
    """Reason for programs, such as `undecodable_image`."""
    message: str
    """Reason for people: what was expected, and what came."""
    request_id: str


class ErrorAnswer(Frozen):
    error: Error


class BatchAnswer(Frozen):
    request_id: str
    disclaimer: str
    outcomes: tuple[Prediction | ErrorAnswer, ...]
    """One per image, in order."""


class ModelAnswer(ModelCard):
    model: str
    """Tag in the BentoML model store."""
    rules: dict[str, str]
    """Explanation of each rule that a prediction's `reasons` can contain."""
    warnings: dict[str, str]
    """Explanation of each warning that a prediction's `warnings` can contain."""


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
    *(v2.ServerMetadata, open_inference.ModelMetadata, v2.InferRequest, InferAnswer, InferError),
)
"""Models whose schemas the document contains, with those that they refer to."""


def document(card: ModelCard, tag: str, settings: Settings) -> Json:
    """OpenAPI 3.1 for a service with these settings and this model."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    result: Json = _fill(yaml.safe_load(text), _values(card, tag, settings))
    errors = result.pop("shared")["errors"]
    for path, item in result["paths"].items():
        for operation in item.values():
            statuses = operation.pop("errors", ())
            model = "InferError" if path.startswith(OIP) else "ErrorAnswer"
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
            operation["responses"] |= {str(status): {**errors[status], "content": content} for status in statuses}
            if 401 in statuses:
                operation["security"] = [{"key": []}] if settings.api_keys_file else [{}, {"key": []}]
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    result["components"]["schemas"] = schemas["$defs"]
    return result


def _fill(node: Any, values: Json) -> Any:
    """A copy of the parsed YAML with the values in place of texts that are a name in braces."""
    match node:
        case dict():
            return {key: _fill(value, values) for key, value in node.items()}
        case list():
            return [_fill(value, values) for value in node]
        case str() if found := re.fullmatch("{([a-z_]+)}", node):
            return values[found[1]]
    return node


def _values(card: ModelCard, tag: str, settings: Settings) -> Json:
    prediction = _example(card, tag)
    image = encode_png(np.zeros((card.input.height, card.input.width), np.uint8))
    return {
        "tag": tag,
        "name": card.name,
        "version": version_of(tag),
        "description": f"Which a chest-CT slice shows: {', '.join(card.titles.values())}. {card.disclaimer}",
        "disclaimer": card.disclaimer,
        "max_images": settings.max_images,
        "image": base64.b64encode(image).decode("ascii"),
        "prediction": prediction.model_dump(mode="json", exclude={"heatmaps", "preview"}),
        "label": prediction.label,
        "model": v1.describe_model(card, tag) | {"metrics": {}},
        "metadata": open_inference.metadata(card, tag).model_dump(mode="json"),
    }


def _example(card: ModelCard, tag: str) -> Prediction:
    """What this model would answer for a clear case of its first class."""
    rest = 0.09 / (len(card.classes) - 1)
    probabilities = np.array([0.91, *[rest] * (len(card.classes) - 1)], np.float32)
    layout = np.reshape(card.input_limits.average_layout, (LAYOUT, LAYOUT))
    facts = Facts(
        width=512,
        height=512,
        colour=0.0,
        contrast=64.0,
        frame=0.0,
        bodies=1,
        body=0.6,
        air=float(AIR),
        tissue=float(TISSUE),
        blockiness=1.0,
        layout=layout,
        negative=np.zeros_like(layout),
        negative_bodies=0,
    )
    familiar = card.thresholds.ood_limit / 2
    return decide(card, probabilities, familiar, 1.0, facts, request_id="scan-17", model=tag)
