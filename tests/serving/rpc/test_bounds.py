"""Limits on the cost of a gRPC call, and the end of calls that exceed them."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from open_inference.grpc import protocol

from serving import api_keys, rpc
from serving.rpc import message_reader
from serving.rpc import server as rpc_server
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from tests.serving.gated_engine import GatedEngine
from tests.serving.rpc.http2 import Connection, message
from tests.serving.rpc.server import Model, Server, ask, is_full, labels, occupy, png, refusal
from tests.waiting import PATIENCE, wait_until

INFER = f"/{rpc.SERVICE}/ModelInfer"
CHECK = "/grpc.health.v1.Health/Check"
UNREAD = 512 * 1024


def unfinished(port: int, method: str, size: int, *, patience: float = 0.2) -> tuple[Connection, int]:
    """A connection with one call that announces 8 MB and sends `size` bytes, as far as the windows allow."""
    connection = Connection(port)
    call = connection.open(method)
    connection.send(call, message(8_000_000) + bytes(size), patience=patience)
    return connection, call


def test_without_a_key_no_message_is_read(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key, line = api_keys.new("a")
    file.write_text(line + "\n")
    with model.serve(api_keys_file=file) as server, Connection(server.rpc.port) as connection:
        for _ in range(50):
            call = connection.open(INFER)
            assert connection.send(call, message(8_000_000) + bytes(1_000_000), patience=0.5) <= UNREAD
            until_ended(connection, call)
            assert b"unauthenticated" in connection.headers[call]
        assert server.memory.used == 0
        bearer = [("authorization", f"Bearer {key}")]
        assert labels(server.stub.ModelInfer(ask(png(1)), metadata=bearer)) == ["large_cell_carcinoma"]


def until_ended(connection: Connection, call: int) -> None:
    wait_until(lambda: ended(connection, call), "the call is ended")


def ended(connection: Connection, call: int) -> bool:
    connection.receive(0)
    return call in connection.ended


def test_without_room_no_message_is_read(model: Model, gate: GatedEngine) -> None:
    with model.serve(gate, queue_size=1) as server, Connection(server.rpc.port) as connection:
        running = [occupy(server, gate)]
        running.append(server.stub.ModelInfer.future(ask(png(1)), timeout=300))
        wait_until(lambda: is_full(server), "the queue is full")
        call = connection.open(INFER)
        assert connection.send(call, message(8_000_000) + bytes(1_000_000), patience=0.5) <= UNREAD
        until_ended(connection, call)
        assert b"overloaded" in connection.headers[call]
        gate.open.set()
        assert [labels(call.result(300)) for call in running] == [["large_cell_carcinoma"]] * 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", [INFER, CHECK])
def test_a_message_that_stalls_is_ended_and_its_memory_freed(server: Server, method: str) -> None:
    connection, call = unfinished(server.rpc.port, method, 1_000_000)
    with connection:
        until_ended(connection, call)
        assert b"body_timeout" in connection.headers[call]
    wait_until(lambda: server.memory.used == 0, "its memory is free")


@pytest.mark.usefixtures("impatient")
def test_a_message_that_trickles_is_ended(server: Server) -> None:
    with Connection(server.rpc.port) as connection:
        call = connection.open(INFER)
        connection.send(call, message(100_000))
        deadline = time.monotonic() + 300
        while call not in connection.ended:
            assert time.monotonic() < deadline
            connection.send(call, b"\0" * 50)
            connection.receive(0.05)
        assert b"body_timeout" in connection.headers[call]
        assert connection.sent[call] < 100_000


@pytest.mark.usefixtures("impatient")
def test_a_message_that_grows_slowly_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_reader, "LONGEST_PAUSE", 2)
    request = ask(png(1), id="x" * 50_000).SerializeToString()
    with Connection(server.rpc.port) as connection:
        call = connection.open(INFER)
        begun = time.monotonic()
        connection.send(call, message(len(request)))
        for at in range(0, len(request), 4000):
            connection.send(call, request[at : at + 4000])
            connection.receive(0.2)
        assert time.monotonic() - begun > 2
        connection.finish(call)
        until_ended(connection, call)
        assert b"grpc-status\x010" in connection.headers[call]


@pytest.mark.usefixtures("impatient")
def test_calls_that_stall_do_not_end_another_one_of_their_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_reader, "LONGEST_PAUSE", 1)
    request = ask(png(1), id="x" * 50_000).SerializeToString()
    with Connection(server.rpc.port) as connection:
        stalled = [connection.open(INFER) for _ in range(40)]
        call = connection.open(INFER)
        for one in (*stalled, call):
            connection.send(one, message(len(request)))
        for at in range(0, len(request), 2000):
            connection.send(call, request[at : at + 2000])
            connection.receive(0.06)
        connection.finish(call)
        until_ended(connection, call)
        assert b"grpc-status\x010" in connection.headers[call]
        for one in stalled:
            until_ended(connection, one)
    wait_until(lambda: server.memory.used == 0, "its memory is free")


def test_a_complete_message_does_not_count_bytes_of_other_calls(
    model: Model, gate: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_reader, "LONGEST_PAUSE", 300)
    monkeypatch.setattr(message_reader, "_CHECK_SECONDS", 0.05)
    request = ask(png(1)).SerializeToString()
    with model.serve(gate) as server, Connection(server.rpc.port) as connection:
        gate.close()
        while sum(connection.sent.values()) < 500_000:  # a quick server ends a call before all of it is sent
            refused = connection.open("/unknown")
            connection.send(refused, message(100_000) + bytes(100_000))
        call = connection.open(INFER)
        connection.send(call, message(len(request)))
        wait_until(lambda: server.memory.used > 400_000, "what came is counted")
        connection.send(call, request)
        connection.finish(call)
        assert gate.entered.wait(300)
        wait_until(lambda: server.memory.used < 100_000 + len(request), "it does not count the bytes of others")
        gate.open.set()
        until_ended(connection, call)


def test_unfinished_messages_take_a_bounded_memory_and_leave_room_for_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_reader, "_CHECK_SECONDS", 0.05)
    budget = 8_000_000
    with model.serve(max_body_bytes=8_000_000, max_bytes_in_flight=budget) as server:
        with ThreadPoolExecutor(12) as pool:
            opened = [pool.submit(unfinished, server.rpc.port, INFER, 2_000_000) for _ in range(12)]
            most = 0
            while not all(future.done() for future in opened):
                assert labels(server.stub.ModelInfer(ask(png(1)), timeout=300)) == ["large_cell_carcinoma"]
                most = max(most, server.memory.used)
        connections = [future.result() for future in opened]
        wait_until(lambda: sum(ended(*connection) for connection in connections) >= 8, "the greedy are refused")
        assert most <= budget
        for connection, _ in connections:
            connection.close()
        wait_until(lambda: server.memory.used == 0, "its memory is free")


def test_probes_are_answered_while_images_take_all_memory(model: Model) -> None:
    with model.serve() as server:
        server.memory.reserve(images := RequestRecord("images"), server.classifier.settings.max_bytes_in_flight)
        server.memory.keep(images)
        assert refusal(server.stub.ModelInfer, ask(png(1))).code() is StatusCode.RESOURCE_EXHAUSTED
        asked = health_pb2.HealthCheckRequest(service=rpc.SERVICE)
        assert server.health.Check(asked, timeout=300).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stub.ServerReady(protocol.ServerReadyRequest(), timeout=300).ready


def test_the_memory_of_a_client_that_leaves_midway_is_freed(server: Server) -> None:
    connection, _ = unfinished(server.rpc.port, INFER, 1_000_000, patience=PATIENCE)
    wait_until(lambda: server.memory.used > 1_000_000, "what came is counted")
    connection.close()
    wait_until(lambda: server.memory.used == 0, "its memory is free")


def test_a_call_without_a_message_is_refused(server: Server) -> None:
    for method in (INFER, CHECK):
        with pytest.raises(grpc.RpcError) as caught:
            server.channel.stream_unary(method)(iter([]), timeout=300)
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "invalid_request: expected a message, got none"


def test_a_compressed_message_is_refused(server: Server) -> None:
    error = refusal(server.stub.ModelInfer, ask(png(1)), compression=grpc.Compression.Gzip)
    assert error.code() is StatusCode.UNIMPLEMENTED
    assert "gzip" in error.details()


def test_too_many_calls_at_once_are_refused(model: Model, gate: GatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_MOST_CALLS", 2)
    with model.serve(gate) as server:
        gate.close()
        running = [server.stub.ModelInfer.future(ask(png(1)), timeout=300) for _ in range(2)]
        assert gate.entered.wait(300)
        wait_until(lambda: is_full(server), "further calls are refused")
        gate.open.set()
        assert [labels(call.result(300)) for call in running] == [["large_cell_carcinoma"]] * 2


def test_too_many_connections_are_closed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_MOST_CONNECTIONS", 3)
    with model.serve() as server:
        connections = [Connection(server.rpc.port) for _ in range(8)]
        wait_until(lambda: sum(map(is_closed, connections)) >= 5, "the others are closed")
        for connection in connections:
            connection.close()


def is_closed(connection: Connection) -> bool:
    connection.receive(0)
    return connection.closed


def test_large_metadata_is_refused(server: Server) -> None:
    error = refusal(server.stub.ModelInfer, ask(png(1)), metadata=[("a", "x" * 100_000)])
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]


def test_an_old_connection_ends_and_no_call_is_lost_by_it(model: Model) -> None:
    with model.serve(grpc_connection_age=1) as server, Connection(server.rpc.port) as connection:
        deadline = time.monotonic() + 300
        while not connection.closed:
            assert time.monotonic() < deadline, "it was not ended"
            assert labels(server.stub.ModelInfer(ask(png(1)))) == ["large_cell_carcinoma"]
            connection.receive(0.01)


def test_unknown_methods_are_counted_as_one(server: Server) -> None:
    counter = metrics.REQUESTS.labels("grpc", "other", "UNIMPLEMENTED")
    before = counter._value.get()
    for name in (f"/{rpc.SERVICE}/Made/Up", "/made.Up/Too"):
        error = refusal(server.channel.unary_unary(name), b"")
        assert error.code() is StatusCode.UNIMPLEMENTED
        assert error.details().startswith("unknown_method: ")
    wait_until(lambda: counter._value.get() == before + 2, "they are counted")
    assert b"made.Up" not in metrics.exposition()


def test_the_memory_of_a_message_is_counted_while_it_is_answered(model: Model, gate: GatedEngine) -> None:
    request = ask(png(1), id="x" * 10_000)
    with model.serve(gate) as server:
        gate.close()
        running = server.stub.ModelInfer.future(request, timeout=300)
        assert gate.entered.wait(300)
        assert server.memory.used >= math.ceil(message_reader.MEMORY_PER_BYTE * request.ByteSize())
        gate.open.set()
        running.result(300)
        wait_until(lambda: server.memory.used == 0, "its memory is free")


def test_a_method_s_request_that_is_another_message_is_refused(server: Server) -> None:
    for method in ("ModelMetadata", "ServerLive"):
        error = refusal(server.channel.unary_unary(f"/{rpc.SERVICE}/{method}"), protocol_text(100_000))
        assert error.code() is StatusCode.INVALID_ARGUMENT
        assert "at most 65536 bytes beside pictures" in error.details()


def protocol_text(size: int) -> bytes:
    return protocol.ModelInferRequest(model_name="x" * size).SerializeToString()
