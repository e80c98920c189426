"""API keys: what a key opens, how a file of keys is read again, and how a key is made."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest

from serving import api_keys
from serving.api_keys import Forbidden, Keys, KeysError, Unauthenticated
from serving.http.admission_control import AdmissionControl
from serving.http.request_recording import RequestRecording
from serving.settings import Settings
from serving.telemetry import log
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Overloaded
from tests.server import ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def bearer(key: str) -> str:
    return f"Bearer {key}"


def write(file: Path, *lines: str) -> None:
    """Replace the file by a new one, like a careful writer."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.rename(file)


def test_a_key_opens_what_it_is_for_and_nothing_else(file: Path) -> None:
    everything, first = api_keys.new("ann")
    some, second = api_keys.new("ben", ("v1", "grpc"))
    write(file, "# people", "", first, second)
    held = Keys(file)
    assert {held.check(bearer(everything), scope) for scope in api_keys.SCOPES} == {"ann"}
    assert held.check(bearer(some), "v1") == held.check(f"bearer {some}", "grpc") == "ben"
    with pytest.raises(Forbidden, match="for v2") as caught:
        held.check(bearer(some), "v2")
    assert caught.value.challenge == 'Bearer realm="chestct", error="insufficient_scope", scope="v2"'


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "chestct_123"])
def test_without_a_key_the_challenge_names_the_scheme(file: Path, header: str | None) -> None:
    write(file, api_keys.new("ann")[1])
    with pytest.raises(Unauthenticated) as caught:
        Keys(file).check(header, "v1")
    assert caught.value.challenge == 'Bearer realm="chestct"'


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "x", lambda _: "x", lambda key: f"é{key}"])
def test_a_wrong_key_is_called_invalid(file: Path, change: object) -> None:
    key, line = api_keys.new("ann")
    write(file, line)
    with pytest.raises(Unauthenticated) as caught:
        Keys(file).check(bearer(change(key)), "v1")  # type: ignore[operator]
    assert 'error="invalid_token"' in caught.value.challenge


def test_the_hash_in_the_file_is_no_key(file: Path) -> None:
    key, line = api_keys.new("ann")
    write(file, line)
    assert key not in file.read_text()
    with pytest.raises(Unauthenticated):
        Keys(file).check(bearer(line.split(":")[1]), "v1")


def test_a_changed_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    (old, first), (new, second) = api_keys.new("ann"), api_keys.new("ann")
    write(file, first)
    held = Keys(file)
    held.check(bearer(old), "v1")
    write(file, first, second)
    held.check(bearer(new), "v1")
    held.check(bearer(old), "v1")
    write(file, second)
    with pytest.raises(Unauthenticated):
        held.check(bearer(old), "v1")


def test_a_mounted_secret_that_changes_by_its_link_is_read_again(tmp_path: Path) -> None:
    (old, first), (new, second) = api_keys.new("ann"), api_keys.new("ben")
    for version, line in (("1", first), ("2", second)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(line)
    link = tmp_path / "data"
    link.symlink_to("1")
    held = Keys(link / "keys")
    held.check(bearer(old), "v1")
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(link)
    held.check(bearer(new), "v1")
    with pytest.raises(Unauthenticated):
        held.check(bearer(old), "v1")


@pytest.mark.parametrize(
    "text", ["", "\n# nobody\n", "ann", "ann:123", "ann:" + 64 * "0" + ":v9", "a b:" + 64 * "0", "\x80"]
)
def test_a_bad_file_leaves_the_keys_and_is_logged_once(file: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    key, line = api_keys.new("ann")
    write(file, line)
    held = Keys(file)
    file.write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            held.check(bearer(key), "v1")
    (record,) = caplog.records
    assert str(file) in record.message
    assert "0000" not in record.message
    with pytest.raises(KeysError):
        Keys(file)


def test_a_file_that_is_gone_leaves_the_keys(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, line = api_keys.new("ann")
    write(file, line)
    held = Keys(file)
    file.unlink()
    held.check(bearer(key), "v1")
    assert "No such file" in caplog.text
    write(file, api_keys.new("ben")[1])
    with pytest.raises(Unauthenticated):
        held.check(bearer(key), "v1")


def test_a_request_that_finds_no_room_is_logged_with_its_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, line = api_keys.new("ann")
    write(file, line)
    full = Mock(check_room=Mock(side_effect=Overloaded(1)))
    app = RequestRecording(AdmissionControl(Mock(), Settings(), Keys(file), lambda: full))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/predict", headers={"Authorization": bearer(key)})

    with caplog.at_level(logging.INFO, logger="serving.telemetry.request_record"):
        assert asyncio.run(ask()).status_code == 429
    assert json.loads(caplog.messages[-1])["key"] == "ann"
    assert key not in caplog.text


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}
    whole = [sys.executable, "-m", "serving.api_keys", *arguments]
    return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_shows_a_key_once_and_writes_its_line(file: Path) -> None:
    done = command("new", "ann", "--scope", "v1")
    assert done.returncode == 0, done.stderr
    key = done.stderr.split()[-1]
    file.write_text(done.stdout)
    held = Keys(file)
    held.check(bearer(key), "v1")
    with pytest.raises(Forbidden):
        held.check(bearer(key), "v2")


@pytest.mark.parametrize("arguments", [["new", "a:b"], ["new", "ann", "--scope", "v9"], ["new"], []])
def test_a_wrong_command_ends_with_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_page_s_command_finds_the_key_in_the_line_of_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = (ROOT / "docs/how-to/rotate-keys.md").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -o '(.+?)'", page)
    lines: list[str] = []
    monkeypatch.setattr(log, "write_request", lambda _, line: lines.append(line))
    with caplog.at_level(logging.INFO, "serving"):
        RequestRecord("r-1", key="radiology").finish("200", {})
    assert re.findall(pattern, lines[0]) == ['"key":"radiology"']
