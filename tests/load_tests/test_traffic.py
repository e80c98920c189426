"""The traffic of the load tests."""

import asyncio
import contextlib
import subprocess
import threading
from pathlib import Path

import pytest

from load_tests import traffic
from load_tests.server import Server, free_ports
from load_tests.verdict import LoadError


def test_a_service_that_answers_nothing_has_no_capacity(tmp_path: Path) -> None:
    async def measure() -> float:
        http, grpc = free_ports(2)
        process = subprocess.Popen[bytes](["true"])
        process.wait(300)
        server = Server(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", process, tmp_path)
        async with traffic.Clients(server, 1) as clients:
            return await traffic.capacity(clients, 0.1)

    with pytest.raises(LoadError, match="no request was answered"):
        traffic.run(measure())


def test_a_connection_without_a_whole_answer_is_lost_and_closed(tmp_path: Path) -> None:
    async def run() -> tuple[str, bytes]:
        left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def answer_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200")
            writer.write_eof()
            rest = await reader.read()  # ends when the client closes the connection
            writer.close()
            await writer.wait_closed()
            left.set_result(rest)

        async with await asyncio.start_server(answer_half, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            process = subprocess.Popen[bytes](["true"])
            process.wait(300)
            server = Server(f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", process, tmp_path)
            async with traffic.Clients(server, 300) as clients:
                outcome = await clients.ask("HTTP", 0)
                return outcome.code, await left

    code, rest = traffic.run(run())
    assert code == "lost"
    assert rest.endswith(b"IEND\xaeB`\x82"), "the whole picture was sent"


def test_an_answer_after_the_time_is_not_counted(tmp_path: Path) -> None:
    class Slow:
        log = tmp_path

        async def ask(self, kind: str, due: float) -> traffic.Outcome:
            await asyncio.sleep(0.5)
            return traffic.Outcome(kind, "200", 0.5)

    with pytest.raises(LoadError, match="no request was answered"):
        traffic.run(traffic.capacity(Slow(), 0.1, connections=1))  # type: ignore[arg-type]


def test_what_fails_to_measure_each_second_is_raised_at_the_end() -> None:
    numbers = iter([1.0])
    failed = threading.Event()

    def measure() -> float:
        number = next(numbers, None)
        if number is None:
            failed.set()
            raise LoadError("the server is gone")
        return number

    stack = contextlib.ExitStack()
    values = stack.enter_context(traffic.each_second(measure))
    assert failed.wait(300)
    assert values == [1]
    with pytest.raises(LoadError, match="the server is gone"):
        stack.close()
