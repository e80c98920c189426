"""Reading of bodies: too slow ones, too many at once, and the memory that they free."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.http import body
from serving.http.body import RAW_MEMORY, check_json, read_body
from serving.http.error_boundary import ErrorBoundary
from serving.http.errors import RequestError
from serving.http.request_recording import RequestRecording
from serving.memory_budget import REQUEST_BYTES, MemoryBudget
from serving.settings import Settings
from tests.serving.http.client import connect

MIB = 1 << 20
SETTINGS = Settings(max_body_bytes=4 * MIB, request_timeout=30)


async def echo_size(scope: Scope, receive: Receive, send: Send) -> None:
    read = await read_body(Request(scope, receive), SETTINGS)
    await Response(str(len(read)))(scope, receive, send)


def ask(
    talk: Callable[[httpx.AsyncClient], Awaitable[Any]], memory: MemoryBudget | None = None, limit: float = 30
) -> Any:
    """The result of `talk` with a client of an app that answers with the body's size."""
    app = RequestRecording(ErrorBoundary(echo_size, Settings(request_timeout=limit)), memory)

    async def run() -> Any:
        async with connect(app) as client:
            return await talk(client)

    return asyncio.run(run())


def sending(*parts: bytes, until: asyncio.Event | None = None, pause: float = 0) -> AsyncIterator[bytes]:
    async def send() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(pause)
        if until is not None:
            await until.wait()

    return send()


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "100"}])
def test_a_body_that_stalls_is_refused_and_frees_its_memory(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(body, "LONGEST_PAUSE", 0.05)
    memory = MemoryBudget(MIB)
    answer = ask(
        lambda client: client.post("/", content=sending(b"some", until=asyncio.Event()), headers=headers), memory
    )
    assert code(answer) == (408, "body_timeout")
    assert memory.used == 0


def test_a_trickling_body_is_refused_although_it_never_pauses_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LONGEST_PAUSE", 0.1)
    answer = ask(lambda client: client.post("/", content=sending(*[b"x"] * 1000, pause=0.01)))
    assert code(answer) == (408, "body_timeout")


def test_a_body_that_misses_the_time_limit_is_refused_with_408() -> None:
    answer = ask(lambda client: client.post("/", content=sending(b"some", until=asyncio.Event())), limit=0.1)
    assert code(answer) == (408, "body_timeout")


def test_a_slow_body_above_the_least_rate_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LONGEST_PAUSE", 10)
    answer = ask(lambda client: client.post("/", content=sending(*[bytes(100)] * 20, pause=0.01)))
    assert (answer.status_code, answer.text) == (200, "2000")


@pytest.mark.parametrize("announced", [True, False])
def test_the_largest_incomplete_body_is_evicted_for_a_smaller_one(announced: bool) -> None:
    memory = MemoryBudget(4 * MIB)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        never = asyncio.Event()
        first = bytes(10) if announced else bytes(3 * MIB)
        headers = {"Content-Length": str(3 * MIB)} if announced else {}
        large = asyncio.create_task(client.post("/", content=sending(first, until=never), headers=headers))
        while memory.used < 3 * MIB:
            await asyncio.sleep(0.001)
        good = await client.post("/", content=bytes(MIB))
        return [await large, good]

    evicted, good = ask(talk, memory)
    assert code(evicted) == (429, "overloaded")
    assert "memory was given to others" in evicted.json()["error"]["message"]
    assert evicted.headers["Retry-After"] == "1"
    assert (good.status_code, good.text) == (200, str(MIB))
    assert memory.used == 0


def test_incomplete_bodies_that_fill_the_memory_do_not_keep_smaller_ones_out() -> None:
    memory = MemoryBudget(4 * MIB)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        never = asyncio.Event()
        size = 200_000
        unfinished = [
            asyncio.create_task(
                client.post("/", content=sending(bytes(10), until=never), headers={"Content-Length": str(size)})
            )
            for _ in range(86)
        ]
        while memory.used < 4 * MIB - size - REQUEST_BYTES:
            await asyncio.sleep(0.001)
        good = [await client.post("/", content=bytes(50_000)) for _ in range(86)]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        return good

    assert [answer.status_code for answer in ask(talk, memory)] == [200] * 86
    assert memory.used == 0


def test_without_room_a_larger_later_body_is_refused_and_the_first_is_answered() -> None:
    memory = MemoryBudget(4 * MIB)

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        end = asyncio.Event()
        first = asyncio.create_task(client.post("/", content=sending(bytes(2 * MIB), until=end)))
        while memory.used < 2 * MIB:
            await asyncio.sleep(0.001)
        refused = await client.post("/", content=bytes(3 * MIB))
        end.set()
        return [refused, await first, await client.post("/", content=bytes(3 * MIB))]

    refused, first, again = ask(talk, memory)
    assert code(refused) == (429, "overloaded")
    assert "memory" in refused.json()["error"]["message"]
    assert [first.text, again.text] == [str(2 * MIB), str(3 * MIB)]


def test_zeros_before_an_announced_length_change_nothing() -> None:
    zeros = "0" * 5000
    assert ask(lambda client: client.post("/", content=b"body", headers={"Content-Length": f"{zeros}4"})).text == "4"
    size = f"{zeros}{9 * MIB}"
    refused = ask(lambda client: client.post("/", content=b"body", headers={"Content-Length": size}))
    assert code(refused) == (413, "body_too_large")
    assert refused.json()["error"]["message"].endswith(f"got {9 * MIB} bytes")


def test_an_announced_length_is_reserved_before_a_byte_is_read() -> None:
    memory = MemoryBudget(4 * MIB)
    counted = []

    async def watched() -> AsyncIterator[bytes]:
        counted.append(memory.used)
        yield bytes(MIB)

    ask(lambda client: client.post("/", content=watched(), headers={"Content-Length": str(MIB)}), memory)
    assert counted == [MIB * RAW_MEMORY + REQUEST_BYTES]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" + b"0," * 300_001, id="commas"),
        pytest.param((b"[" * 150 + b"]" * 150) * 2001, id="brackets without commas"),
        pytest.param(b"{" + b'"":0,' * 10_001, id="keys"),
    ],
)
def test_json_with_too_many_values_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="send pixels as binary tensor data") as refused:
        check_json(content, len(content))
    assert (refused.value.status, refused.value.code) == (413, "json_too_large")


@pytest.mark.parametrize("wide", ["\\ud83d\\ude00", "\N{GRINNING FACE}", "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
def test_large_json_with_wide_characters_is_refused(wide: str) -> None:
    text = f'["{wide}"'.encode()
    check_json(text.ljust(1_000_000), 1_000_000)
    large = text.ljust(1_000_001)
    check_json(large, 1_000_000)
    with pytest.raises(RequestError, match="unless it is ASCII") as refused:
        check_json(large, len(large))
    assert (refused.value.status, refused.value.code) == (413, "json_too_large")


def test_four_images_of_256_pixels_a_side_pass_as_json() -> None:
    data = json.dumps(np.zeros((4, 256, 256, 1), np.uint8).tolist()).encode()
    check_json(data, len(data))
