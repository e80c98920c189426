"""Calls over gRPC that wait: in a full queue, until their deadline, or for the memory of others."""

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from serving import rpc
from serving.memory_budget import REQUEST_BYTES
from serving.telemetry import metrics
from tests.serving.gated_engine import GatedEngine
from tests.serving.rpc.server import Model, Server, ask, is_full, labels, occupy, png, refusal
from tests.waiting import wait_until


def test_a_full_queue_is_resource_exhausted_with_a_time_to_retry(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate, queue_size=1) as server:
        running = occupy(server, gate)
        waiting = server.stub.ModelInfer.future(ask(png(2)), timeout=300)
        wait_until(lambda: is_full(server), "the queue is full")
        unparsed = server.channel.unary_unary(f"/{rpc.SERVICE}/ModelInfer")
        error = refusal(unparsed, b"no message", metadata=[("x-request-id", "b-8")])
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(error.trailing_metadata())
        assert trailing["x-request-id"] == "b-8"
        assert int(trailing["retry-after"]) >= 1
        assert int(trailing["grpc-retry-pushback-ms"]) >= 0
        details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        (info,) = details.details
        retry = error_details_pb2.RetryInfo()
        assert info.Unpack(retry)
        assert details.code == StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert retry.retry_delay.ToMilliseconds() >= 0
        gate.open.set()
        assert [labels(call.result(300)) for call in (running, waiting)] == [["large_cell_carcinoma"], ["normal"]]


def test_messages_take_a_bounded_memory_together(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate, max_bytes_in_flight=REQUEST_BYTES * 3 // 2, max_body_bytes=REQUEST_BYTES) as server:
        running = occupy(server, gate)
        refused = refusal(server.stub.ModelInfer, ask(png(1)))
        assert refused.code() is StatusCode.RESOURCE_EXHAUSTED
        assert "memory" in (refused.details() or "")
        gate.open.set()
        assert labels(running.result(300)) == ["large_cell_carcinoma"]
        assert labels(server.stub.ModelInfer(ask(png(1)), timeout=300)) == ["large_cell_carcinoma"]


def test_a_call_past_its_deadline_leaves_the_queue(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate, queue_size=1) as server:
        running = occupy(server, gate)
        assert refusal(server.stub.ModelInfer, ask(png(2)), timeout=0.3).code() is StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: not is_full(server), "the queue is free")  # by the server's own clock of that deadline
        waiting = server.stub.ModelInfer.future(ask(png(3)), timeout=300)
        wait_until(lambda: is_full(server), "the queue is full")
        gate.open.set()
        assert [labels(call.result(300)) for call in (running, waiting)] == [
            ["large_cell_carcinoma"],
            ["squamous_cell_carcinoma"],
        ]


def test_a_deadline_in_the_past_is_reported(server: Server) -> None:
    assert refusal(server.stub.ModelInfer, ask(png(1)), timeout=0).code() is StatusCode.DEADLINE_EXCEEDED
    error = refusal(server.stub.ModelInfer, ask(png(1)), timeout=-1)
    assert error.code() is StatusCode.DEADLINE_EXCEEDED


def test_the_service_s_own_time_limit_holds_without_a_deadline(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate, request_timeout=0.2) as server:
        gate.open.clear()
        error = refusal(server.stub.ModelInfer, ask(png(1)))
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        assert "0.2 seconds" in error.details()
        gate.open.set()


def test_a_client_s_own_deadline_is_not_counted_as_the_service_s_failure(model: Model, gate: GatedEngine) -> None:
    def count(code: str) -> float:
        return metrics.REQUESTS.labels("grpc", f"/{rpc.SERVICE}/ModelInfer", code)._value.get()

    codes = ("client_deadline_exceeded", "CANCELLED", "DEADLINE_EXCEEDED")
    before = [count(code) for code in codes]

    def counted() -> list[float]:
        return [count(code) - earlier for code, earlier in zip(codes, before, strict=True)]

    with model.serve(gate, request_timeout=200) as server:
        gate.close()
        for patience in (0.2, 2, 20):  # on a busy machine the first may be over before it arrives
            if not gate.entered.is_set():
                error = refusal(server.stub.ModelInfer, ask(png(1)), timeout=patience)
                assert error.code() is StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: sum(counted()), "the calls are counted")
        gate.open.set()
    own, cancelled, service_s = counted()
    # By the server's clock it may not have passed yet when the client ends the call.
    assert own + cancelled >= 1
    assert service_s == 0
