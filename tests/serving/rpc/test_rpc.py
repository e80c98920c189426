"""The gRPC server with the tiny model, over a real channel."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from open_inference.grpc import protocol
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import chestct
from chestct.image import encode_png
from serving import rpc
from serving.telemetry import metrics, tracing
from serving.tensors import pack_bytes, unpack_bytes
from tests.graphs import tiny_picture
from tests.serving.gated_engine import GatedEngine
from tests.serving.rpc.server import SIZE, Model, Server, ask, labels, occupy, png, refusal

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_an_image_is_answered_with_every_output_in_raw_form(server: Server) -> None:
    answer = server.stub.ModelInfer(ask(png(2), png(0)))
    assert (answer.model_name, answer.model_version) == ("chestct", "abc")
    assert labels(answer) == ["normal", "adenocarcinoma"]
    names = [output.name for output in answer.outputs]
    assert len(answer.raw_output_contents) == len(names)
    assert not any(output.HasField("contents") for output in answer.outputs)
    probabilities = np.frombuffer(answer.raw_output_contents[names.index("probabilities")], "<f4").reshape(2, 4)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert answer.parameters["disclaimer"].string_param == "Research and education only. Not a medical device."


def test_images_and_pixels_in_either_form_get_the_same_labels(server: Server) -> None:
    picture = tiny_picture(1)
    image = {"name": "image", "datatype": "BYTES", "shape": [1]}
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 1]}
    requests = [
        ask(png(1)),
        ask(inputs=[image], raw_input_contents=[pack_bytes([png(1)])]),
        ask(inputs=[{**pixels, "contents": {"uint_contents": picture.ravel().tolist()}}]),
        ask(inputs=[pixels], raw_input_contents=[picture.tobytes()]),
    ]
    assert [labels(server.stub.ModelInfer(request)) for request in requests] == [["large_cell_carcinoma"]] * 4


def test_every_rule_that_rejects_comes_as_a_reason(server: Server) -> None:
    strip = encode_png(np.resize(tiny_picture(1)[:, :, 0], (200, 20)))
    answer = server.stub.ModelInfer(ask(strip, outputs=[{"name": "decision"}, {"name": "reasons"}]))
    values = [unpack_bytes(content) for content in answer.raw_output_contents]
    assert values == [[b"reject"], [b'["extreme_aspect", "no_body", "not_chest_ct"]']]


def test_only_the_requested_outputs_come_in_their_order(server: Server) -> None:
    answer = server.stub.ModelInfer(ask(png(1), outputs=[{"name": "heatmaps"}, {"name": "label"}]))
    assert [(output.name, list(output.shape)) for output in answer.outputs] == [("heatmaps", [1, 4]), ("label", [1])]


def test_the_call_s_ids_come_back(server: Server) -> None:
    answer, call = server.stub.ModelInfer.with_call(ask(png(1), id="a-7"), metadata=[("x-request-id", "b-8")])
    assert answer.id == "a-7"
    assert dict(call.trailing_metadata())["x-request-id"] == "b-8"


def test_the_message_s_id_is_the_request_s_without_one_in_the_metadata(server: Server) -> None:
    _, call = server.stub.ModelInfer.with_call(ask(png(1), id="a-7"))
    assert dict(call.trailing_metadata())["x-request-id"] == "a-7"


@pytest.mark.parametrize("wanted", ["", "ä", "a\nb", "a" * 129])
def test_an_id_that_can_t_travel_as_metadata_is_replaced_there_and_kept_in_the_answer(
    server: Server, wanted: str
) -> None:
    answer, call = server.stub.ModelInfer.with_call(ask(png(1), id=wanted))
    assert answer.id == wanted
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_a_refused_call_has_its_request_id_too(server: Server) -> None:
    error = refusal(server.stub.ModelInfer, ask(b"bad"), metadata=[("x-request-id", "b-8")])
    assert dict(error.trailing_metadata())["x-request-id"] == "b-8"


def test_a_bad_image_is_an_invalid_argument_and_the_next_request_is_answered(server: Server) -> None:
    error = refusal(server.stub.ModelInfer, ask(png(1), png(1)[:60]))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("undecodable_image: image[1]: the image is truncated")
    assert labels(server.stub.ModelInfer(ask(png(3)))) == ["squamous_cell_carcinoma"]


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"inputs": []}, "got none", id="no input"),
        pytest.param({"inputs": [IMAGE]}, "expected 1 elements for the shape [1], got 0", id="no contents"),
        pytest.param({"raw_input_contents": [b""]}, "either raw_input_contents or contents, got both", id="both forms"),
        pytest.param(
            {"inputs": [IMAGE], "raw_input_contents": [b"", b""]},
            "expected one for each of the 1 inputs",
            id="raw count",
        ),
        pytest.param({"outputs": [{"name": "logits"}]}, "got 'logits'", id="output"),
        pytest.param({"parameters": {"classification": {"int64_param": 2}}}, "expected none of", id="parameter"),
    ],
)
def test_a_wrong_request_is_an_invalid_argument(server: Server, fields: dict[str, Any], message: str) -> None:
    error = refusal(server.stub.ModelInfer, ask(png(1), **fields))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("invalid_request: ")
    assert message in error.details()


def test_bytes_that_are_no_message_are_an_invalid_argument(server: Server) -> None:
    error = refusal(server.channel.unary_unary(f"/{rpc.SERVICE}/ModelInfer"), b"no message")
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert error.details() == "invalid_request: expected a message of ModelInfer, got 10 bytes that are none"


def test_another_model_or_version_is_not_found(server: Server) -> None:
    calls = [
        (server.stub.ModelInfer, ask(png(1), model_name="other")),
        (server.stub.ModelInfer, ask(png(1), model_version="2")),
        (server.stub.ModelReady, protocol.ModelReadyRequest(name="chestct", version="2")),
        (server.stub.ModelMetadata, protocol.ModelMetadataRequest(name="other")),
    ]
    for call, request in calls:
        assert refusal(call, request).code() is StatusCode.NOT_FOUND


def test_metadata_names_inputs_outputs_and_the_disclaimer(server: Server) -> None:
    about = server.stub.ModelMetadata(protocol.ModelMetadataRequest(name="chestct", version="abc"))
    assert (about.name, list(about.versions), about.platform) == ("chestct", ["abc"], "onnx_onnxv1")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in about.inputs] == [
        ("image", "BYTES", [-1]),
        ("pixels", "UINT8", [-1, SIZE, SIZE, 1]),
    ]
    assert "heatmaps" in [spec.name for spec in about.outputs]
    assert "Not a medical device" in about.properties["disclaimer"]
    itself = server.stub.ServerMetadata(protocol.ServerMetadataRequest())
    assert (itself.name, itself.version) == ("chestct", chestct.__version__)


def test_a_message_above_the_limit_is_refused(model: Model) -> None:
    with model.serve(max_body_bytes=4096) as server:
        assert refusal(server.stub.ModelInfer, ask(bytes(5000))).code() is StatusCode.RESOURCE_EXHAUSTED
        assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]


def test_a_message_of_endless_fields_is_refused_unparsed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    unparsed = server.channel.unary_unary(f"/{rpc.SERVICE}/ModelInfer")
    error = refusal(unparsed, b"\x2a\x00" * 1_000_000)  # empty inputs
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "at most 1064 fields, on all levels together, got more" in error.details()
    many = ask(png(1))
    many.outputs.extend([protocol.ModelInferRequest.InferRequestedOutputTensor(name="label")] * 200)
    assert len(server.stub.ModelInfer(many).outputs) == 1
    for broken in (b"\xff" * 40, b"\x2a\xff\xff\xff", b"\x2f", b"\x0d\x00"):  # no varint, no end, no such kind
        assert "bytes that are none" in refusal(unparsed, broken).details()


def test_an_error_that_quotes_what_came_is_not_too_long_for_a_header(server: Server) -> None:
    request = ask(png(1))
    request.model_name = "x" * 20_000
    error = refusal(server.stub.ModelInfer, request)
    assert error.code() is StatusCode.NOT_FOUND
    assert len(error.details()) <= 1000


def test_not_serving_until_the_model_is_warm(model: Model) -> None:
    with model.serve(warm=False) as server:
        assert [server.health_of(name) for name in ("", rpc.SERVICE)] == [NOT_SERVING] * 2
        assert server.stub.ServerLive(protocol.ServerLiveRequest()).live
        assert not server.stub.ServerReady(protocol.ServerReadyRequest()).ready
        assert not server.stub.ModelReady(protocol.ModelReadyRequest(name="chestct")).ready
        assert refusal(server.stub.ModelInfer, ask(png(1))).code() is StatusCode.UNAVAILABLE

        server.warm_up()
        assert [server.health_of(name) for name in ("", rpc.SERVICE)] == [SERVING] * 2
        assert server.stub.ServerReady(protocol.ServerReadyRequest()).ready
        assert server.stub.ModelReady(protocol.ModelReadyRequest(name="chestct")).ready
        assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]


def test_the_health_of_all_services_is_listed(server: Server) -> None:
    statuses = server.health.List(health_pb2.HealthListRequest()).statuses
    assert {name: each.status for name, each in statuses.items()} == {"": SERVING, rpc.SERVICE: SERVING}


def test_stopping_ends_health_watches_and_finishes_the_running_call(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate) as server:
        watch = server.health.Watch(health_pb2.HealthCheckRequest(service=rpc.SERVICE), timeout=300)
        assert next(watch).status == SERVING
        running = occupy(server, gate)
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(server.run, server.rpc.stop(20))
            assert next(watch).status == NOT_SERVING
            gate.open.set()
            assert labels(running.result(300)) == ["large_cell_carcinoma"]
            stopping.result(300)  # although the client still watches
            with pytest.raises(grpc.RpcError):
                next(watch)


def test_reflection_describes_the_services(server: Server) -> None:
    described = ProtoReflectionDescriptorDatabase(server.channel)
    assert {rpc.SERVICE, "grpc.health.v1.Health"} <= set(described.get_services())
    file = described.FindFileContainingSymbol(rpc.SERVICE)
    assert "ModelInfer" in [method.name for method in file.service[0].method]


def test_a_failing_engine_is_an_internal_error_without_internals(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate) as server:
        gate.fails = True
        error = refusal(server.stub.ModelInfer, ask(png(1), id="a-7"))
        assert error.code() is StatusCode.INTERNAL
        assert error.details() == "internal_error: request a-7 failed, see the log"
        gate.fails = False
        assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]


def test_twenty_calls_at_once_good_and_bad_get_their_own_answers(server: Server) -> None:
    def call(index: int) -> tuple[str, object]:
        try:
            answer = server.stub.ModelInfer(ask(png(index % 4) if index % 5 else b"bad", id=str(index)), timeout=300)
            return answer.id, labels(answer)
        except grpc.RpcError as error:
            return dict(error.trailing_metadata())["x-request-id"], error.code()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(call, range(20)))
    classes = server.classifier.card.classes
    assert answers == [
        (str(index), [classes[index % 4]] if index % 5 else StatusCode.INVALID_ARGUMENT) for index in range(20)
    ]


def test_calls_are_counted_by_method_and_status(server: Server) -> None:
    def count(code: str) -> float:
        return metrics.REQUESTS.labels("grpc", f"/{rpc.SERVICE}/ModelInfer", code)._value.get()

    before = {code: count(code) for code in ("OK", "INVALID_ARGUMENT")}
    server.stub.ModelInfer(ask(png(1)))
    refusal(server.stub.ModelInfer, ask(b"bad"))
    unknown = server.channel.unary_unary(f"/{rpc.SERVICE}/Made/Up")
    assert refusal(unknown, b"").code() is StatusCode.UNIMPLEMENTED
    assert {code: count(code) - before[code] for code in before} == {"OK": 1, "INVALID_ARGUMENT": 1}
    assert b"Made" not in metrics.exposition()


def test_a_call_is_a_span_below_the_client_s(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", None)
    tracing.start(provider)
    trace = "0af7651916cd43dd8448eb211c80319c"
    for sampled in ("00", "01"):
        parent = ("traceparent", f"00-{trace}-b7ad6b7169203331-{sampled}")
        server.stub.ModelInfer(ask(png(1), id=sampled), metadata=[parent])
    refusal(server.stub.ModelInfer, ask(b"bad"))  # this runs after the last call is recorded
    (span,) = exporter.get_finished_spans()
    assert (span.name, f"{span.context.trace_id:032x}") == (f"{rpc.SERVICE}/ModelInfer", trace)
    attributes = dict(span.attributes or {})
    assert {name: value for name, value in attributes.items() if not name.endswith("_seconds")} == {
        "rpc.system": "grpc",
        "rpc.service": rpc.SERVICE,
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "chestct.request_id": "01",
        "chestct.outcome": "answered",
        "chestct.images": 1,
    }


def test_servers_of_several_processes_may_share_a_port(model: Model, server: Server) -> None:
    with model.serve(grpc_port=server.rpc.port) as second:
        assert second.rpc.port == server.rpc.port
        assert labels(second.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]
