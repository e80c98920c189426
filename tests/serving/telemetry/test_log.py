"""The log: what it shows of an entry, and that no line waits for a reader."""

import contextlib
import fcntl
import json
import logging
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.telemetry import metrics
from serving.telemetry.log import JsonFormatter, NonBlockingHandler
from tests.server import ROOT, import_tiny_model, serve
from tests.waiting import wait_until

SECRET = "what was sent"


class Kept(logging.Handler):
    """Formats each entry where it is created, as the service's handler does."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def logger(name: str, handler: logging.Handler) -> Iterator[logging.Logger]:
    found = logging.getLogger(name)
    found.addHandler(handler)
    found.propagate = False
    try:
        yield found
    finally:
        found.removeHandler(handler)
        found.propagate = True


def test_lines_of_other_libraries_show_only_text_from_their_code() -> None:
    kept = Kept()
    with logger("other", kept) as log:
        log.warning("Invalid request.")
        log.warning("expected %s", SECRET)
        log.warning(f"got {SECRET}")
    spelled, template, made_up = map(json.loads, kept.lines)
    assert (spelled["message"], spelled["level"], spelled["logger"]) == ("Invalid request.", "WARNING", "other")
    assert template["message"] == "expected %s"
    assert "message" not in made_up
    here = "test_lines_of_other_libraries_show_only_text_from_their_code"
    assert made_up["at"].startswith("tests/serving/telemetry/test_log.py:")
    assert made_up["at"].endswith(here)
    assert SECRET not in "".join(kept.lines)


def test_our_own_lines_show_the_message_and_the_request_id() -> None:
    kept = Kept()
    with logger("serving.made_up", kept) as log:
        log.warning("read %d keys", 3, extra={"request_id": "r-1"})
    line = json.loads(kept.lines[0])
    assert (line["message"], line["request_id"]) == ("read 3 keys", "r-1")


def fail(depth: int) -> None:
    if depth:
        fail(depth - 1)
    try:
        int(SECRET)
    except ValueError as error:
        raise OSError(28, SECRET) from error


@pytest.mark.parametrize("depth", [0, 200])
def test_an_exception_is_one_short_line_with_type_place_and_cause(depth: int) -> None:
    kept = Kept()
    with logger("serving.made_up", kept) as log:
        try:
            fail(depth)
        except OSError:
            log.exception("request %s failed", "r-1")
    (text,) = kept.lines
    assert len(text) < select.PIPE_BUF
    line = json.loads(text)
    assert line["error"] == "OSError ENOSPC"
    assert line["stack"][-1].startswith("tests/serving/telemetry/test_log.py:")
    assert line["stack"][-1].endswith(" fail")
    assert [cause.split()[0] for cause in line["causes"]] == ["ValueError"]
    assert SECRET not in text


def test_an_exception_with_many_long_causes_is_one_short_line() -> None:
    class Failed(Exception):
        __qualname__ = "F" * 400

    kept = Kept()
    error: Failed | None = None
    for _ in range(30):
        try:
            raise Failed from error
        except Failed as raised:
            error = raised
    with logger("serving.made_up", kept) as log:
        log.error("failed", exc_info=error)
    (text,) = kept.lines
    assert len(text) < select.PIPE_BUF
    line = json.loads(text)
    assert line["error"] == "F" * 400
    assert 1 < len(line["causes"]) < 12


@pytest.mark.parametrize("waits", [True, False])
def test_a_full_pipe_drops_lines_and_reports_their_number_later(waits: bool) -> None:
    """This includes a pipe that could not be opened again, whose writes block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, waits)
    before = metrics.LOG_LINES_DROPPED._value.get()
    with os.fdopen(reading, "rb") as reader, logger("serving.made_up", NonBlockingHandler(writing)) as log:
        for _ in range(1000):
            log.warning("x" * 200)
        os.set_blocking(reading, False)
        read = reader.read().decode().splitlines()
        log.warning("flows")
        last = [json.loads(line) for line in reader.read().decode().splitlines()]
    os.close(writing)
    dropped = 1000 - len(read)
    assert dropped > 0
    assert (last[0]["dropped"], last[1]["message"], len(last)) == (dropped, "flows", 2)
    assert metrics.LOG_LINES_DROPPED._value.get() - before == dropped
    assert all(json.loads(line)["level"] == "WARNING" for line in read)


def test_a_line_that_a_full_disk_cuts_off_spoils_no_other_line(tmp_path: Path) -> None:
    """A limit on the size of a file fails like a full disk: first a line is cut off, then none is taken."""
    file = (tmp_path / "log").open("ab", buffering=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with file, logger("serving.made_up", NonBlockingHandler(file.fileno())) as log:
        log.warning("whole")
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.tell() + 20, hard))
        try:
            log.warning("cut off")
            log.warning("not taken")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.warning("there is room again")
        log.warning("the next")
    first, torn, *last = (tmp_path / "log").read_text().splitlines()
    assert json.loads(first)["message"] == "whole"
    assert len(torn) == 20
    notice, again, after = map(json.loads, last)
    assert notice["dropped"] == 2
    assert [line["message"] for line in (again, after)] == ["there is room again", "the next"]


HOLDS_UP_NOBODY = """
import logging, os, sys, threading, warnings
from serving.telemetry import log
from serving.telemetry.request_record import RequestRecord

log.make_writes_non_blocking()
log.take_over()
for number in range(9000):
    RequestRecord("0" * 128, route="/v1/predict").finish("200", {})
warnings.warn("what was sent")
thread = threading.Thread(target=int, args=("what was sent",))
thread.start()
thread.join()
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os._exit(7)
"""


def test_unread_output_does_not_block_a_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_UP_NOBODY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.wait(300) == 7
        finally:
            process.kill()


def ask_for_nothing(url: str, count: int) -> None:
    """Send requests that each leave a line of the greatest length, some at a time. All must be answered."""
    request = f"GET /nothing HTTP/1.1\r\nHost: x\r\nX-Request-ID: {'0' * 128}\r\n\r\n".encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        for left in range(count, 0, -20):
            connection.sendall(min(left, 20) * request)
            answers = b""
            while answers.count(b"}}") < min(left, 20):
                part = connection.recv(65536)
                assert part, "the connection has ended"
                answers += part
            assert answers.count(b"HTTP/1.1 404") == min(left, 20)


def dropped(url: str) -> float:
    (line,) = (
        line
        for line in httpx.get(f"{url}/metrics", timeout=300).text.splitlines()
        if line.startswith("chestct_log_lines_dropped_total")
    )
    return float(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="sets a pipe's size, as Linux can")
def test_a_service_with_an_unread_log_still_answers_and_replaces_a_worker(tmp_path: Path) -> None:
    home = tmp_path / "bentoml"
    tag = import_tiny_model(home)
    log = home.with_name(f"{home.name}-..log")  # where `serve` puts it
    os.mkfifo(log)
    reading = os.open(log, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> list[dict[str, Any]]:
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reading, 1 << 20):
                parts.append(part)
        return [json.loads(line) for line in b"".join(parts).splitlines() if line.startswith(b"{")]

    def fill(url: str) -> int:
        """Send requests until lines are dropped; returns their number."""
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 64 * 1024)  # it was made larger
        before = dropped(url)
        for asked in range(100, 2000, 100):
            ask_for_nothing(url, 100)
            if dropped(url) > before:
                return asked
        pytest.fail("the pipe takes everything")

    with serve(home, tag, CHESTCT_WORKERS="1") as server:
        asked = fill(server.url)
        time.sleep(1)  # a line follows its answer
        count = dropped(server.url)
        written = [line for line in read() if line.get("route") == "other"]
        assert len(written) + count == asked
        ask_for_nothing(server.url, 1)
        lines: list[dict[str, Any]] = []

        def has_two() -> bool:
            lines.extend(read())
            return len(lines) >= 2

        wait_until(has_two, "the notice and the next line are written")
        notice, line = lines
        assert (notice["dropped"], line["route"]) == (count, "other")

        fill(server.url)
        (worker,) = (one for one in psutil.Process(server.process.pid).children() if "--worker-id" in one.cmdline())
        worker.kill()

        def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{server.url}/readyz", timeout=300).status_code == 200
            return False

        wait_until(is_ready, "another worker is ready")
        ask_for_nothing(server.url, 1)
    os.close(reading)
