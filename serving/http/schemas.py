"""Pydantic models of the HTTP API's requests and answers, for the OpenAPI document.

They describe less than the routes accept: the protocol's other names and extensions stay out of the document.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from chestct.card import Frozen, ModelCard
from chestct.prediction import Prediction
from serving import open_inference
from serving.http import v2
from serving.tensors import Datatype


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


class ServerMetadata(Frozen):
    name: str
    version: str
    extensions: tuple[str, ...]


class InferInput(Frozen):
    name: Literal["image", "pixels"]
    datatype: Literal["BYTES", "UINT8"]
    shape: Annotated[tuple[int, ...], Field(min_length=1)]
    parameters: dict[str, Any] | None = None
    """`binary_data_size`: the number of bytes after the JSON that are this input's data."""
    data: list[Any] | None = None
    """`image`: each file in base64; `pixels`: grey levels, nested or flat."""


class InferOutput(Frozen):
    name: str
    parameters: dict[str, Any] | None = None
    """`binary_data`: whether the output's data follows the JSON."""


class InferRequest(Frozen):
    id: Annotated[str, Field(max_length=v2.MAX_ID)] = ""
    parameters: dict[str, Any] | None = None
    """`window_center` and `window_width`: the window for DICOM files; `binary_data_output`."""
    inputs: Annotated[tuple[InferInput, ...], Field(min_length=1)]
    """Exactly one of `image` and `pixels`."""
    outputs: tuple[InferOutput, ...] = ()
    """Without names: all outputs except `heatmaps` and `preview`."""


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


MODELS: Final[tuple[type[BaseModel], ...]] = (
    *(Prediction, ErrorAnswer, BatchAnswer, ModelAnswer),
    *(ServerMetadata, open_inference.ModelMetadata, InferRequest, InferAnswer, InferError),
)
"""Models whose schemas the document contains, with those that they refer to."""
