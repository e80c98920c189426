"""The traffic of the load tests."""

import asyncio
import subprocess
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


def test_an_answer_after_the_time_is_not_counted(tmp_path: Path) -> None:
    class Slow:
        log = tmp_path

        async def ask(self, kind: str, due: float) -> traffic.Outcome:
            await asyncio.sleep(0.5)
            return traffic.Outcome(kind, "200", 0.5)

    with pytest.raises(LoadError, match="no request was answered"):
        traffic.run(traffic.capacity(Slow(), 0.1, connections=1))  # type: ignore[arg-type]
