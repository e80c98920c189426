"""The Open Inference Protocol over HTTP below /v2: JSON, and Triton's extension for binary tensor data."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

import chestct
from chestct.document import Frozen
from chestct.invalid_image import InvalidImage
from chestct.store import version_of
from serving import open_inference
from serving.api_keys import Keys
from serving.http.body import TENSORS_MEMORY, check_json, read_body, while_connected
from serving.http.errors import RequestError, bad_request, describe_problems
from serving.http.readiness import check_ready, ready_classifier
from serving.http.rendered import Rendered
from serving.http.request_recording import REQUEST_ID
from serving.http.require_api_key import require_api_key
from serving.inference.classifier import Classifier
from serving.telemetry.request_record import RequestRecord, choose_id
from serving.tensors import IMAGE, Input, InvalidRequest

JSON_LENGTH: Final = "Inference-Header-Content-Length"
"""Header: length in bytes of the JSON before the binary data; 0 if the body is one image file."""
EXTENSIONS: Final = ("binary_tensor_data",)

MAX_ID: Final = 1000
"""Most characters of a request's `id`, which is kept until the answer."""
_MOST: Final = 64
"""Most inputs, outputs and dimensions of a shape. The model has two inputs and about ten outputs."""
_SHORT: Final = Field(fail_fast=True, max_length=_MOST)
"""Rules for a list. The first invalid element ends the check: to report them all would take longer than to read."""

T = TypeVar("T")


def _documented(**schema: Any) -> Any:
    """Narrow the schema in /docs.json. serving.open_inference checks the value, with better words than pydantic."""
    return Field(json_schema_extra=schema)


def routes(keys: Keys | None) -> list[BaseRoute]:
    """The routes of the protocol. Each route's name is its template, for the metrics.

    With `keys`, all routes except those of health require an API key.
    """
    model = "/models/{name}"
    version = model + "/versions/{version}"
    v2 = Router(
        [
            Route("/health/live", _live, name="/v2/health/live"),
            Route("/health/ready", _ready, name="/v2/health/ready"),
            *require_api_key([route for path in (model, version) for route in _of_model(path)], keys, "v2"),
        ],
        redirect_slashes=False,
    )
    return [*require_api_key([Route("/v2", _server, name="/v2")], keys, "v2"), Mount("/v2", v2)]


def _of_model(path: str) -> tuple[Route, ...]:
    return (
        Route(path, _metadata, name=f"/v2{path}"),
        Route(f"{path}/ready", _model_ready, name=f"/v2{path}/ready"),
        Route(f"{path}/infer", infer, methods=["POST"], name=f"/v2{path}/infer"),
    )


class _Message(BaseModel):
    """Base of the protocol's messages. Unknown fields are allowed, because the protocol's extensions add some."""

    model_config = ConfigDict(frozen=True, strict=True)

    parameters: InstanceOf[dict[str, Any]] | None = None

    def parameter(self, name: str, kind: type[T]) -> T | None:
        value = (self.parameters or {}).get(name)
        if value is not None and type(value) is not kind:
            raise InvalidRequest(f"parameters: expected {name} to be {kind.__name__}, got {type(value).__name__}")
        return value


class InferInput(_Message):
    name: Annotated[str, _documented(enum=["image", "pixels"])]
    datatype: Annotated[str, _documented(enum=["BYTES", "UINT8"])]
    shape: Annotated[list[int], _SHORT, _documented(minItems=1)]
    data: InstanceOf[list[Any]] | None = None
    """`image`: files in base64; `pixels`: grey levels, nested or flat. serving.open_inference checks the elements."""


class InferOutput(_Message):
    name: str


class InferRequest(_Message):
    id: Annotated[str, Field(max_length=MAX_ID)] | None = None
    inputs: Annotated[list[InferInput], _SHORT, _documented(minItems=1)]
    outputs: Annotated[list[InferOutput], _SHORT] | None = None


class ServerMetadata(Frozen):
    name: str
    version: str
    extensions: tuple[str, ...]


class _AnswerForm(NamedTuple):
    """The requested form of the answer."""

    id: str | None = None
    binary: Mapping[str, bool] = {}
    """Whether the data of the named output follows the JSON."""
    others_binary: bool = False


async def _server(_: Request) -> Response:
    server = ServerMetadata(name=open_inference.SERVER, version=chestct.__version__, extensions=EXTENSIONS)
    return JSONResponse(server.model_dump())


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    check_ready(ready_classifier(request))
    return JSONResponse({"ready": True})


async def _metadata(request: Request) -> Response:
    return _describe(_find(request)).answer(request)


@lru_cache(maxsize=1)
def _describe(classifier: Classifier) -> Rendered:
    return Rendered(open_inference.metadata(classifier.card, classifier.tag).model_dump())


async def _model_ready(request: Request) -> Response:
    classifier = _find(request)
    check_ready(classifier)
    return JSONResponse({"name": classifier.card.name, "ready": True})


async def infer(request: Request) -> Response:
    """The answer of the model, in the form that the request asks for."""
    classifier = _find(request)
    body = await read_body(request, classifier.settings, TENSORS_MEMORY)
    try:
        # Not in a thread: the parser holds the interpreter's lock, so the event loop would wait as long.
        wanted, form = _parse(request.headers, body)
        record: RequestRecord = request.state.record
        record.request_id = choose_id(request.headers.get(REQUEST_ID), form.id, record.request_id)
        checked = open_inference.check_request(classifier, wanted)
        del body, wanted  # several times the size of the images
        tensors = await while_connected(request, open_inference.infer(classifier, checked, record))
        return _response(classifier, form, tensors)
    except InvalidRequest as error:
        raise bad_request(error.code, str(error)) from error
    except InvalidImage as error:
        too_large = error.code == "image_too_large"
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        raise RequestError(status, error.code, error.message) from error


def _find(request: Request) -> Classifier:
    classifier = ready_classifier(request)
    try:
        open_inference.check_model(
            classifier.card, classifier.tag, request.path_params["name"], request.path_params.get("version", "")
        )
    except open_inference.UnknownModel as error:
        raise RequestError(HTTPStatus.NOT_FOUND, error.code, str(error)) from error
    return classifier


def _parse(headers: Mapping[str, str], body: bytes) -> tuple[open_inference.Request, _AnswerForm]:
    """The request with its inputs' data, and the form of its answer. Raises InvalidRequest and RequestError."""
    announced = headers.get(JSON_LENGTH, str(len(body)))
    if not re.fullmatch("[0-9]{1,18}", announced) or int(announced) > len(body):
        raise InvalidRequest(f"{JSON_LENGTH}: expected at most the body's {len(body)} bytes, got {announced[:32]!r}")
    length = int(announced)
    if length == 0:
        return open_inference.Request((Input(IMAGE, "BYTES", (1,), [body]),)), _AnswerForm(others_binary=True)
    message = _read_json(body, length)
    outputs = message.outputs or ()
    for described in (message, *message.inputs, *outputs):
        open_inference.check_parameters(described.parameters or ())
    inputs = tuple(_read_inputs(message, body, length))
    binary = {output.name: output.parameter("binary_data", bool) for output in outputs}
    form = _AnswerForm(
        id=message.id,
        binary={name: flag for name, flag in binary.items() if flag is not None},
        others_binary=message.parameter("binary_data_output", bool) or False,
    )
    return open_inference.Request(inputs, tuple(output.name for output in outputs)), form


def _read_inputs(message: InferRequest, body: bytes, at: int) -> Iterator[Input]:
    """The inputs with their data, which is in the JSON, or in the body from position `at` on. Raises InvalidRequest."""
    for tensor in message.inputs:
        size = tensor.parameter("binary_data_size", int)
        data: bytes | list[Any] | None = tensor.data
        if size is not None and data is None:
            left = len(body) - at
            if not 0 <= size <= left:
                raise InvalidRequest(
                    f"{tensor.name[:64]}: expected binary_data_size of at most the {left} bytes left, got {size}"
                )
            data = body[at : at + size]
            at += size
        elif size is not None or data is None:
            raise InvalidRequest(f"{tensor.name[:64]}: expected either data or the parameter binary_data_size")
        yield Input(tensor.name, tensor.datatype, tuple(tensor.shape), data)
    if at != len(body):
        raise InvalidRequest(f"expected no bytes after the JSON and the inputs' binary data, got {len(body) - at}")


def _read_json(body: bytes, length: int) -> InferRequest:
    """The message in the first `length` bytes. Raises InvalidRequest, and RequestError if the JSON is too large."""
    check_json(body, length)
    try:
        return InferRequest.model_validate(from_json(body[:length], allow_inf_nan=False))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(describe_problems(problems, 3)) from None
    except ValueError as error:
        raise InvalidRequest(f"body: expected JSON: {error}") from None


def _response(classifier: Classifier, form: _AnswerForm, tensors: tuple[open_inference.Tensor, ...]) -> Response:
    outputs = []
    binary = []
    for tensor in tensors:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if form.binary.get(tensor.name, form.others_binary):
            binary.append(tensor.raw())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            if tensor.files:
                output["parameters"] = {"content_type": "base64"}
            output["data"] = tensor.json_data()
        outputs.append(output)
    answer = {
        "model_name": classifier.card.name,
        "model_version": version_of(classifier.tag),
        "parameters": {"disclaimer": classifier.card.disclaimer},
        "outputs": outputs,
    }
    if form.id is not None:
        answer["id"] = form.id
    head = to_json(answer)
    if not binary:
        return Response(head, media_type="application/json")
    media_type = "application/octet-stream"
    return Response(b"".join((head, *binary)), media_type=media_type, headers={JSON_LENGTH: str(len(head))})
