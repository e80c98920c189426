"""`make hold`: its requests, its table, and how it continues after an interruption."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from chestct import dicom
from chestct.interrupts import INTERRUPTED
from load_tests import images, wire
from load_tests.promises import __main__ as hold
from load_tests.promises import fuzz, privacy, results
from load_tests.verdict import MISSED
from tests.server import Server

GOOD = results.Row("what", "3", "0", False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "hold")
    monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
    results.PAGE.write_text(
        "above\n<!-- begin of what `make hold` writes -->\n<!-- end of what `make hold` writes -->\nbelow\n"
    )
    return tmp_path


def a_part(calls: list[str], name: str, held: bool = True) -> Callable[[float], object]:
    async def measure(_: float) -> list[results.Row]:
        calls.append(name)
        return [GOOD._replace(held=held)]

    return measure


def test_a_run_goes_on_after_its_last_whole_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    async def interrupted(_: float) -> list[results.Row]:
        raise KeyboardInterrupt

    monkeypatch.setattr(hold, "PARTS", {"one": a_part(calls, "one"), "two": interrupted})
    assert hold.main([]) == INTERRUPTED
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(hold, "PARTS", {"one": a_part(calls, "one"), "two": a_part(calls, "two")})
    assert hold.main([]) == 0
    assert calls == ["one", "two"]
    assert hold.main(["--scale", "0.5"]) == 0
    assert calls == ["one", "two", "one", "two"], "another length is another run"


def test_a_broken_promise_fails_and_is_marked_in_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hold, "PARTS", {"one": a_part([], "one", held=False)})
    assert hold.main([]) == MISSED
    assert capsys.readouterr().out.endswith("FAIL\n")
    page = results.PAGE.read_text()
    assert page.startswith("above\n")
    assert page.endswith("below\n")
    assert "| one | what | 3 | 0 | **no** |" in page


def test_each_request_holds_markers_of_its_own() -> None:
    markers = privacy.Markers()
    places = [privacy.FOUND.findall(request.decode("latin-1")) for request in privacy.requests_over_http(markers)]
    assert all(places), "each request holds a marker"
    numbers = [int(number) for found in places for number in found]
    assert sorted(set(numbers)) == list(range(len(markers.places)))


def test_each_kind_of_wrong_request_is_drawn_and_answered(server: Server) -> None:
    async def run() -> list[tuple[str, str]]:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            fuzzer = fuzz.Fuzzer(server, [channel], seed=1)
            return [await fuzzer.ask() for _ in range(80)]

    codes = asyncio.run(run())
    assert len({kind for kind, _ in codes}) >= 10
    assert not [code for code in codes if fuzz.is_failure(code[1]) or code[1] == "hung"]
    assert fuzz.is_failure("500")
    assert fuzz.is_failure("UNKNOWN")
    assert not fuzz.is_failure("503")


def test_the_dicom_file_that_is_sent_shows_the_phantom() -> None:
    levels = dicom.read(images.dicom_file())
    assert min(levels.shape) > 64
    assert levels.std() > 10


def test_a_slow_link_delivers_a_refusal_before_the_reset_that_follows_it() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        writer.transport.abort()

    async def run() -> wire.Answer:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with wire.slow_link(url, 0.01) as slow:
                return await wire.exchange(slow, b"POST / HTTP/1.1\r\n\r\n")

    assert asyncio.run(run()) == wire.Answer("413", b"no")


def test_a_kept_result_is_of_one_commit(folder: Path) -> None:
    results.keep(results.Part("one", 0.1, [GOOD]), "abc", 1)
    assert results.kept("one", "abc", 1) == results.Part("one", 0.1, [GOOD])
    assert results.kept("one", "abd", 1) is None
    assert results.kept("two", "abc", 1) is None
