"""The Open Inference Protocol's methods, and its messages as serving.open_inference has them."""

import asyncio
import logging
from typing import Any, Final

from grpc import StatusCode
from open_inference.grpc import protocol, service

import chestct
from chestct.image import InvalidImage
from serving import open_inference
from serving.inference.classifier import Classifier
from serving.rpc.calls import REQUEST_ID, abort, abort_overloaded, current_call
from serving.rpc.connections import Context
from serving.telemetry.request_record import choose_id
from serving.tensors import Input, InvalidRequest
from serving.unavailable import Closed, Overloaded

_log: Final = logging.getLogger(__name__)


class Inference(service.GRPCInferenceServiceServicer):
    """Answers the Open Inference Protocol."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def ServerLive(self, request: protocol.ServerLiveRequest, context: Context) -> protocol.ServerLiveResponse:
        return protocol.ServerLiveResponse(live=True)

    async def ServerReady(self, request: protocol.ServerReadyRequest, context: Context) -> protocol.ServerReadyResponse:
        return protocol.ServerReadyResponse(ready=self._classifier.ready)

    async def ModelReady(self, request: protocol.ModelReadyRequest, context: Context) -> protocol.ModelReadyResponse:
        await self._find(request.name, request.version, context)
        return protocol.ModelReadyResponse(ready=self._classifier.ready)

    async def ServerMetadata(
        self, request: protocol.ServerMetadataRequest, context: Context
    ) -> protocol.ServerMetadataResponse:
        return protocol.ServerMetadataResponse(name=open_inference.SERVER, version=chestct.__version__)

    async def ModelMetadata(
        self, request: protocol.ModelMetadataRequest, context: Context
    ) -> protocol.ModelMetadataResponse:
        await self._find(request.name, request.version, context)
        return protocol.ModelMetadataResponse(
            **open_inference.metadata(self._classifier.card, self._classifier.tag).model_dump()
        )

    async def ModelInfer(self, request: protocol.ModelInferRequest, context: Context) -> protocol.ModelInferResponse:
        call = current_call()
        call.request_id = choose_id(dict(context.invocation_metadata() or ()).get(REQUEST_ID), request.id)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        await self._find(request.model_name, request.model_version, context)
        message_id = request.id
        try:
            question = open_inference.read(self._classifier, _to_request(request))
            del request  # or what was read of it would be in memory twice
            async with asyncio.timeout(call.remaining):
                tensors = await open_inference.infer(self._classifier, question, call)
        except (InvalidRequest, InvalidImage) as error:
            await abort(context, StatusCode.INVALID_ARGUMENT, error.code, str(error))
        except Overloaded as error:
            await abort_overloaded(error, context)
        except Closed as error:
            await abort(context, StatusCode.UNAVAILABLE, "not_ready", str(error))
        except TimeoutError:
            limit = (
                "its deadline" if call.hurried else f"the service's {self._classifier.settings.request_timeout} seconds"
            )
            words = f"no answer within {limit}"
            await abort(context, StatusCode.DEADLINE_EXCEEDED, call.late, words)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            _log.exception("request %s failed", call.request_id, extra={"request_id": call.request_id})
            words = f"request {call.request_id} failed, see the log"
            await abort(context, StatusCode.INTERNAL, "internal_error", words)
        return self._to_response(message_id, tensors)

    async def _find(self, name: str, version: str, context: Context) -> None:
        try:
            open_inference.find(self._classifier.card, self._classifier.tag, name, version)
        except open_inference.UnknownModel as error:
            await abort(context, StatusCode.NOT_FOUND, error.code, str(error))

    def _to_response(self, message_id: str, tensors: tuple[open_inference.Tensor, ...]) -> protocol.ModelInferResponse:
        card, tag = self._classifier.card, self._classifier.tag
        return protocol.ModelInferResponse(
            model_name=card.name,
            model_version=open_inference.version(tag),
            id=message_id,
            parameters={"disclaimer": protocol.InferParameter(string_param=card.disclaimer)},
            outputs=[{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in tensors],
            raw_output_contents=[tensor.raw() for tensor in tensors],
        )


def _to_request(request: protocol.ModelInferRequest) -> open_inference.Request:
    """Raises InvalidRequest where the raw contents don't fit the inputs."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents: expected one for each of the {len(request.inputs)} inputs, got {len(raw)}"
        )
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidRequest("inputs: expected either raw_input_contents or contents, got both")
    described: list[Any] = [request, *request.inputs, *request.outputs]
    for part in described:
        open_inference.check_parameters(part.parameters)
    return open_inference.Request(
        inputs=tuple(
            Input(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tuple(tensor.shape),
                data=raw[index] if raw else _contents(tensor),
            )
            for index, tensor in enumerate(request.inputs)
        ),
        outputs=tuple(output.name for output in request.outputs),
        window=open_inference.read_window(
            {name: getattr(p, p.WhichOneof("parameter_choice") or "", None) for name, p in request.parameters.items()}
        ),
    )


def _contents(tensor: protocol.ModelInferRequest.InferInputTensor) -> Any:
    contents = tensor.contents
    return list(contents.bytes_contents) if tensor.datatype == "BYTES" else contents.uint_contents
