"""Checks that clients receive a refusal although they still send their body."""

import asyncio
import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import requests

from load_tests import wire
from load_tests.promises.results import Row
from load_tests.server import serve
from serving.api_keys import new

TRIES: Final = 10
LINK_SECONDS: Final = 0.01
"""Delay of each direction on the slow link."""
PNG: Final = {"Content-Type": "image/png"}
Ask = Callable[[str, bytes, Mapping[str, str]], int]


def _urllib(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Send `Connection: close`, as urllib does."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, dict(headers)), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _http_client(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("POST", parts.path, body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def _requests(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    return requests.post(url, body, headers=dict(headers), timeout=60).status_code


def _httpx(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    return httpx.post(url, content=body, headers=dict(headers), timeout=60).status_code


def _http_1_0(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(wire.post(parts.path, body, headers).replace(b" HTTP/1.1", b" HTTP/1.0", 1))
        return int(connection.makefile("rb").readline()[9:12])


def _curl(url: str, body: bytes, headers: Mapping[str, str], *extra: str) -> int:
    options = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-s", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", *options, *extra]
    done = subprocess.run([*command, "--data-binary", "@-", url], input=body, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"curl ended with {done.returncode}")
    return int(done.stdout)


def _curl_at_once(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Send without waiting for 100 Continue."""
    return _curl(url, body, headers, "-H", "Expect:")


CLIENTS: Final[Mapping[str, Ask]] = {
    "urllib": _urllib,
    "http.client": _http_client,
    "requests": _requests,
    "httpx": _httpx,
    "HTTP/1.0": _http_1_0,
    **({"curl": _curl, "curl without Expect": _curl_at_once} if shutil.which("curl") else {}),
}


async def measure(scale: float) -> list[Row]:
    """Try each client TRIES times `scale`, on loopback and over a slow link."""
    tries = max(1, round(TRIES * scale))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        key, line = new("hold")
        file.write_text(line + "\n", encoding="utf-8")
        settings = {"CHESTCT_API_KEYS_FILE": str(file), "CHESTCT_MAX_BYTES_IN_FLIGHT": str(24 << 20)}
        known = {"Authorization": f"Bearer {key}"}
        with serve(environment={**os.environ, **settings, "CHESTCT_WORKERS": "1"}) as server:
            for link in (0.0, LINK_SECONDS):
                async with AsyncExitStack() as stack:
                    url = await stack.enter_async_context(wire.slow_link(server.url, link)) if link else server.url
                    large = 40_000_000 if not link else 22_000_000
                    cases = {
                        "413": ("/v1/predict", bytes(large), {**PNG, **known}),
                        "415": ("/v1/predict", bytes(2_000_000), {"Content-Type": "text/html", **known}),
                        "401": ("/v1/predict", bytes(2_000_000), PNG),
                        "404": ("/v1/nothing", bytes(2_000_000), known),
                        "405": ("/v1/model", bytes(2_000_000), known),
                    }
                    for status, (path, body, headers) in cases.items():
                        rows.append(await _row(status, link, tries, url + path, body, headers))
                    holder = await _hold(server.url, known)
                    # Larger than the bodies of the other requests, so that this one finds no room.
                    rows.append(
                        await _row("429", link, tries, f"{url}/v1/predict", bytes(20_000_000), {**PNG, **known})
                    )
                    holder.cancel()
    return rows


async def _row(status: str, link: float, tries: int, url: str, body: bytes, headers: Mapping[str, str]) -> Row:
    seen: Counter[str] = Counter()
    for name, ask in CLIENTS.items():
        for _ in range(tries):
            try:
                answer = str(await asyncio.to_thread(ask, url, body, headers))
            except (OSError, http.client.HTTPException, httpx.HTTPError, ValueError) as error:
                answer = f"{name} {type(error).__name__}"
            seen[answer] += 1
    over = f"link of {1000 * link:.0f} ms" if link else "loopback"
    others = "".join(f", {answer} {count}" for answer, count in seen.items() if answer != status)
    total = seen.total()
    what = f"{status} seen by {len(CLIENTS)} clients that send {len(body) / 1e6:g} MB, {over}"
    return Row(what, f"{seen[status]} of {total}{others}", "all", seen[status] == total)


async def _hold(url: str, headers: Mapping[str, str]) -> asyncio.Task[None]:
    """Send slow bodies of 12 MB on three connections, so that little room is left for other requests."""
    head = "".join(f"{name}: {value}\r\n" for name, value in {**PNG, **headers}.items())
    request = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 12000000\r\n\r\n".encode()

    async def one() -> None:
        while True:
            _, writer = await wire.connect(url)
            try:
                writer.write(request)
                for _ in range(100):
                    writer.write(bytes(20_000))
                    await writer.drain()
                    await asyncio.sleep(0.1)
            except OSError:
                await asyncio.sleep(0.1)
            finally:
                writer.close()

    async def several() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(one())

    task = asyncio.ensure_future(several())
    await asyncio.sleep(1)
    return task
