"""The methods of the Open Inference Protocol, and the translation of its messages to serving.open_inference."""

import asyncio
from functools import lru_cache
from typing import Any

from open_inference.grpc import protocol, service

import chestct
from chestct.store import version_of
from serving import open_inference
from serving.inference.classifier import Classifier
from serving.rpc.connections import Context
from serving.rpc.errors import DeadlinePassed
from serving.rpc.interceptor import RECORD, REQUEST_ID
from serving.telemetry.request_record import choose_id
from serving.tensors import Input, InvalidRequest


class InferenceServicer(service.GRPCInferenceServiceServicer):
    """Answers the Open Inference Protocol. CallInterceptor turns the errors that it raises into statuses."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def ServerLive(self, request: protocol.ServerLiveRequest, context: Context) -> protocol.ServerLiveResponse:
        return protocol.ServerLiveResponse(live=True)

    async def ServerReady(self, request: protocol.ServerReadyRequest, context: Context) -> protocol.ServerReadyResponse:
        return protocol.ServerReadyResponse(ready=self._classifier.ready)

    async def ModelReady(self, request: protocol.ModelReadyRequest, context: Context) -> protocol.ModelReadyResponse:
        self._check_model(request.name, request.version)
        return protocol.ModelReadyResponse(ready=self._classifier.ready)

    async def ServerMetadata(
        self, request: protocol.ServerMetadataRequest, context: Context
    ) -> protocol.ServerMetadataResponse:
        return protocol.ServerMetadataResponse(name=open_inference.SERVER, version=chestct.__version__)

    async def ModelMetadata(
        self, request: protocol.ModelMetadataRequest, context: Context
    ) -> protocol.ModelMetadataResponse:
        self._check_model(request.name, request.version)
        metadata = open_inference.metadata(self._classifier.card, self._classifier.tag)
        return protocol.ModelMetadataResponse(**metadata.model_dump())

    async def ModelInfer(self, request: protocol.ModelInferRequest, context: Context) -> protocol.ModelInferResponse:
        record = RECORD.get()
        if request.id:
            given = dict(context.invocation_metadata() or ()).get(REQUEST_ID)
            record.request_id = choose_id(given, request.id, record.request_id)
            context.set_trailing_metadata(((REQUEST_ID, record.request_id),))
        self._check_model(request.model_name, request.model_version)
        message_id = request.id
        checked = open_inference.check_request(self._classifier, _to_request(request))
        del request  # otherwise its content would be in memory twice
        try:
            async with asyncio.timeout(record.remaining):
                tensors = await open_inference.infer(self._classifier, checked, record)
        except TimeoutError:
            seconds = self._classifier.settings.request_timeout
            limit = "its deadline" if record.client_deadline else f"the service's {seconds} seconds"
            raise DeadlinePassed(record.late_code, f"no answer within {limit}") from None
        return self._to_response(message_id, tensors)

    def _check_model(self, name: str, version: str) -> None:
        """Raise UnknownModel for another model or version."""
        open_inference.check_model(self._classifier.card, self._classifier.tag, name, version)

    def _to_response(self, message_id: str, tensors: tuple[open_inference.Tensor, ...]) -> protocol.ModelInferResponse:
        response = protocol.ModelInferResponse()
        card = self._classifier.card
        described = tuple((tensor.name, tensor.datatype, tensor.shape) for tensor in tensors)
        response.CopyFrom(_describe(card.name, version_of(self._classifier.tag), card.disclaimer, described))
        response.id = message_id
        response.raw_output_contents.extend(tensor.raw() for tensor in tensors)
        return response


@lru_cache(maxsize=256)
def _describe(
    name: str, version: str, disclaimer: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
) -> protocol.ModelInferResponse:
    """An answer without id and contents. It is copied, because to build one takes four times as long."""
    return protocol.ModelInferResponse(
        model_name=name,
        model_version=version,
        parameters={"disclaimer": protocol.InferParameter(string_param=disclaimer)},
        outputs=[{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in tensors],
    )


def _to_request(message: protocol.ModelInferRequest) -> open_inference.Request:
    """Translate a message. Raises InvalidRequest for unfit raw contents and for unsupported parameters."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents: expected one for each of the {len(message.inputs)} inputs, got {len(raw)}"
        )
    if raw and any(tensor.HasField("contents") for tensor in message.inputs):
        raise InvalidRequest("inputs: expected either raw_input_contents or contents, got both")
    described: list[Any] = [message, *message.inputs, *message.outputs]
    for part in described:
        if part.parameters:
            open_inference.check_parameters(part.parameters)
    return open_inference.Request(
        inputs=tuple(
            Input(tensor.name, tensor.datatype, tuple(tensor.shape), raw[index] if raw else _contents(tensor))
            for index, tensor in enumerate(message.inputs)
        ),
        outputs=tuple(output.name for output in message.outputs),
    )


def _contents(tensor: protocol.ModelInferRequest.InferInputTensor) -> Any:
    contents = tensor.contents
    return list(contents.bytes_contents) if tensor.datatype == "BYTES" else contents.uint_contents
