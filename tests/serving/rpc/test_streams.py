"""Health watches, reflections and unread answers: their number is bounded, and none holds up another."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import rpc
from serving.rpc import connections, interceptor
from serving.rpc import server as rpc_server
from tests.serving.rpc.http2 import Connection, message
from tests.serving.rpc.server import Model, Server, ask, labels, png, refusal
from tests.waiting import wait_until

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


def test_watches_and_reflections_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "MOST_STREAMS", 2)
    ended = [next_watch(server) for _ in range(2)]
    error = refusal(lambda request, timeout: list(server.health.Watch(request, timeout=timeout)), WATCHED)
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    reflection = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError, match="overloaded: expected at most 2 watches"):
        list(reflection.ServerReflectionInfo(iter([asked]), timeout=300))
    assert server.health.Check(WATCHED, timeout=300).status == health_pb2.HealthCheckResponse.SERVING
    for watch in ended:
        watch.cancel()
    wait_until(lambda: can_reflect(reflection, asked), "ended watches are not counted")


def not_taking(port: int, method: str, calls: int = 1) -> Connection:
    """A connection with complete calls. Its client takes no byte of an answer."""
    connection = Connection(port, takes=0)
    for _ in range(calls):
        call = connection.open(method)
        connection.send(call, message(0))
        connection.finish(call)
    wait_until(lambda: began(connection) == calls, "the calls are answered")
    return connection


def began(connection: Connection) -> int:
    connection.receive(0)
    return len(connection.headers)


def test_an_unread_watch_blocks_neither_another_one_nor_the_stop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "DELIVERY_SECONDS", 300)
    with model.serve() as server, not_taking(server.rpc.port, WATCH):
        watch = next_watch(server)
        server.run(server.rpc.update_health())
        server.run(server.rpc.stop(300))  # `run` waits for less
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_calls_whose_answers_are_not_taken_lose_their_places(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "_MOST_CALLS", 8)
    monkeypatch.setattr(connections, "DELIVERY_SECONDS", 1)
    with model.serve() as server:
        greedy = [not_taking(server.rpc.port, method, 4) for method in (CHECK, f"/{rpc.SERVICE}/ServerLive")]
        wait_until(lambda: is_answered(server), "they lose their places")
        for connection in greedy:
            wait_until(lambda connection=connection: began(connection) and connection.closed, "it is closed")
            connection.close()


def is_answered(server: Server) -> bool:
    try:
        return bool(labels(server.stub.ModelInfer(ask(png(1)), timeout=300)))
    except grpc.RpcError as error:
        if error.code() is not StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False


WATCHED = health_pb2.HealthCheckRequest(service=rpc.SERVICE)


def next_watch(server: Server) -> grpc.Future:
    watch = server.health.Watch(WATCHED, timeout=300)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    return watch


def can_reflect(stub: reflection_pb2_grpc.ServerReflectionStub, asked: reflection_pb2.ServerReflectionRequest) -> bool:
    try:
        return len(list(stub.ServerReflectionInfo(iter([asked]), timeout=300))) == 1
    except grpc.RpcError:
        return False


@pytest.mark.usefixtures("impatient")
def test_a_reflection_without_further_questions_ends_well(server: Server) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    answered = threading.Event()

    def asks() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        answered.wait(300)

    try:
        (answer,) = stub.ServerReflectionInfo(asks(), timeout=200)  # the server ends the call first
    finally:
        answered.set()
    assert rpc.SERVICE in [described.name for described in answer.list_services_response.service]
