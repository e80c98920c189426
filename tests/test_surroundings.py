"""The real service in bad surroundings: an old CPU, no room for temporary files, a clock that jumps."""

import contextlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from chestct.card import Rounding
from chestct.engine import Engine
from chestct.image import encode_png
from chestct.store import CARD, GRAPH
from load_tests.server import Server as Running
from load_tests.server import free_ports
from tests.dicom import dicom_file
from tests.graphs import tiny_model, tiny_picture
from tests.server import ROOT, environment, import_model, import_tiny_model, serve
from tests.waiting import PATIENCE, wait_until

LABEL = "large_cell_carcinoma"
LEVELS = tiny_picture(1)[:, :, 0]
MOUNTS = {
    "read-only": "mount -t tmpfs -o ro tmpfs /tmp",
    "full": "mount -t tmpfs -o size=64k tmpfs /tmp && ! head -c 70000 /dev/zero 2>&- >/tmp/full",
}
"""Commands that spoil /tmp."""
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
QEMU = shutil.which("qemu-x86_64")
SCORE = """
import sys, numpy as np, pathlib
from chestct.engine import Engine, has_instructions
engine = Engine(pathlib.Path(sys.argv[1]), threads=1, batch_sizes=(1,))
assert not has_instructions("bfloat16")
np.save(sys.argv[3], engine.infer(np.load(sys.argv[2])).probabilities)
"""


def may_mount() -> bool:
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, check=False
    )
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or not may_mount(), reason="this user may not mount file systems of its own"
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A model store outside /tmp, over which the tests mount another file system."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    import_tiny_model(folder / "bentoml")
    yield folder / "bentoml"
    shutil.rmtree(folder)


@contextlib.contextmanager
def start(mounts: str, home: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the service after these commands in a mount namespace of its own. Yields the process and its URL."""
    http, grpc = free_ports(2)
    serving = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(http)]
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *serving],
        cwd=ROOT,
        env=environment(home, CHESTCT_WORKERS="1", CHESTCT_GRPC_PORT=str(grpc), CHESTCT_DRAIN_SECONDS="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process, f"http://127.0.0.1:{http}"
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=PATIENCE).is_success
    return False


def ask(url: str, file: bytes) -> Any:
    return httpx.post(f"{url}/v1/predict", files={"image": file}, timeout=PATIENCE).raise_for_status().json()


@needs_mounts
@pytest.mark.skipif(ROOT.is_relative_to("/tmp"), reason="the project itself is in /tmp, which the test hides")
@pytest.mark.parametrize("mounts", MOUNTS.values(), ids=MOUNTS)
def test_it_answers_without_room_for_temporary_files(mounts: str, home: Path) -> None:
    with start(mounts, home) as (process, url):
        wait_until(lambda: is_ready(url) or process.poll() is not None, "it is ready")
        assert ask(url, encode_png(LEVELS))["label"] == LABEL
        assert ask(url, dicom_file(LEVELS))["request_id"], "the process that reads DICOM files starts, too"
        assert "chestct_predictions_total" in httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "ERROR" not in output
    assert "Traceback" not in output


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime here (Debian: apt-get install faketime)")
def test_a_clock_that_jumps_delays_and_ends_nothing(tmp_path: Path) -> None:
    import_tiny_model(tmp_path / "bentoml")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    jumps = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with serve(tmp_path / "bentoml", "", CHESTCT_WORKERS="2", CHESTCT_HANG_SECONDS="4", **jumps) as server:
        log = server.log

        def days() -> list[int]:
            """The days of the log's lines of requests, from the real one."""
            times = [json.loads(line)["time"] for line in log.read_text().splitlines() if '"/v1/predict"' in line]
            return [round((datetime.fromisoformat(time) - datetime.fromisoformat(times[0])).days) for time in times]

        for jump in ("+0", "+3d", "-3d", "+0"):
            clock.write_text(jump)
            assert ask(server.url, encode_png(LEVELS))["label"] == LABEL
            assert ask(server.url, dicom_file(LEVELS))["request_id"]
            assert is_ready(server.url)
            assert httpx.get(f"{server.url}/livez", timeout=PATIENCE).is_success
        wait_until(lambda: len(days()) == 8, "all requests are logged")
        assert {3, 0} <= set(days())
        assert min(days()) <= -3
        assert "worker process" not in log.read_text()
        clock.write_text("-3d")
        frozen, *_ = Running(*server[:2], server.process, log).workers().values()
        frozen.suspend()
        wait_until(lambda: not frozen.is_running(), "the supervisor still looks for workers that hang")


def test_a_cpu_without_avx_512_serves_and_says_so_in_one_line(tmp_path: Path) -> None:
    folder, home = tmp_path / "model", tmp_path / "bentoml"
    card = tiny_model(folder)
    card.model_copy(update={"bfloat16": Rounding(agreement=1, same_decision=1, accuracy_fall=0)}).write(folder / CARD)
    import_model(home, folder)
    with serve(home, "", CHESTCT_WORKERS="2", OV_CPU_MAX_ISA="AVX2") as server:
        assert ask(server.url, encode_png(LEVELS))["label"] == LABEL
        wait_until(lambda: "page: " in server.log.read_text(), "the first worker is ready, too")
        lines = [line for line in server.log.read_text().splitlines() if "bfloat16" in line]
    assert [json.loads(line)["message"] for line in lines] == [
        "this CPU has no instructions for bfloat16, so float32 is used, which takes longer"
    ]


@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here (Debian: apt-get install qemu-user)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates an x86 CPU for this Python")
def test_an_emulated_cpu_without_avx_512_gives_the_same_probabilities(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    graph = tmp_path / "model" / GRAPH
    size = Engine(graph, threads=1, batch_sizes=(1,))
    pixels = np.stack([tiny_picture(label) for label in range(2)])
    np.save(tmp_path / "pixels.npy", pixels)
    assert QEMU
    arguments = [str(graph), str(tmp_path / "pixels.npy"), str(tmp_path / "scores.npy")]
    emulated = [QEMU, "-cpu", "Haswell", sys.executable, "-c", SCORE, *arguments]
    subprocess.run(emulated, cwd=ROOT, check=True, timeout=3000)  # an emulated CPU is slow
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), size.infer(pixels).probabilities, atol=1e-4)
