"""HAProxy in front of small servers."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from image.pod import Probe
from load_tests import wire
from load_tests.rollout.balancer import Balancer, Ports, balance, configuration
from load_tests.server import free_ports
from tests.load_tests.rollout.backends import backends

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="no haproxy here (Debian: apt-get install haproxy)")
PROBE = Probe(period=1, timeout=1, failures=1)


async def ask(front: Ports) -> str:
    answer = await wire.exchange(f"http://127.0.0.1:{front.http}", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    return answer.body.decode() if answer.code == "200" else answer.code


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[tuple[Balancer, Ports, list[Ports]]]:
    ports = free_ports(6)
    front, slots = Ports(*ports[:2]), [Ports(*ports[2:4]), Ports(*ports[4:])]
    with balance(tmp_path, front, slots, PROBE) as balancer:
        yield balancer, front, slots


Balanced = tuple[Balancer, Ports, list[Ports]]


@needs_haproxy
def test_requests_go_to_the_slots_that_are_in(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def talk() -> None:
        async with backends(slots):
            assert await ask(front) == "503"
            await balancer.take_in(0)
            assert {await ask(front) for _ in range(4)} == {"0"}
            await balancer.take_in(1)
            assert {await ask(front) for _ in range(4)} == {"0", "1"}
            await balancer.drain(0)
            assert {await ask(front) for _ in range(4)} == {"1"}

    asyncio.run(talk())


@needs_haproxy
def test_a_drained_slot_still_answers_what_it_was_asked(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def talk() -> None:
        async with backends(slots) as (slow, _):
            await balancer.take_in(0)
            slow.answers.clear()
            waiting = asyncio.ensure_future(ask(front))
            while not slow.asked:
                await asyncio.sleep(0.01)
            await balancer.drain(0)
            slow.answers.set()
            assert await waiting == "0"
            assert await balancer.unanswered(0) == 0

    asyncio.run(talk())


@needs_haproxy
def test_a_request_that_a_slot_never_answers_is_counted(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def talk() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", slots[0].http)
        await balancer.take_in(0)
        assert await ask(front) == "502"
        assert [await balancer.unanswered(slot) for slot in (0, 1)] == [1, 0]
        server.close()

    asyncio.run(talk())


@needs_haproxy
def test_a_refused_connection_is_tried_elsewhere_and_counted(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def talk() -> None:
        async with backends(slots[:1]):
            await balancer.take_in(0)
            await balancer.take_in(1)  # nothing listens there
            assert {await ask(front) for _ in range(4)} == {"0"}
            assert await balancer.retried() > 0

    asyncio.run(talk())


@needs_haproxy
def test_a_replica_that_is_not_ready_gets_nothing_until_it_is(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def talk() -> None:
        async with backends(slots) as (busy, _):
            await balancer.take_in(0)
            busy.ready = False
            while await ask(front) != "503":
                await asyncio.sleep(0.1)
            busy.ready = True
            while await ask(front) != "0":
                await asyncio.sleep(0.1)

    asyncio.run(talk())


@needs_haproxy
def test_grpc_reaches_the_slot_that_is_in(balanced: Balanced) -> None:
    balancer, front, slots = balanced

    async def talk() -> None:
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        server.add_insecure_port(f"127.0.0.1:{slots[0].grpc}")
        await server.start()
        async with backends(slots), grpc.aio.insecure_channel(f"127.0.0.1:{front.grpc}") as channel:
            await balancer.take_in(0)
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.stop(None)

    asyncio.run(talk())


def test_the_balancer_asks_as_often_as_the_kubelet(tmp_path: Path) -> None:
    lines = configuration(tmp_path, Ports(1, 2), [Ports(3, 4)], Probe(5, 2, 3)).splitlines()
    assert "  timeout check 2s" in lines
    assert "  server 0 127.0.0.1:3 check inter 5s fall 3" in lines
    assert "  server 0 127.0.0.1:4 proto h2 track http/0" in lines
