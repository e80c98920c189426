"""The page of the start: how logs and import times are read. No server is started."""

import math
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import startup
from benchmarks.startup import Imported, Phase
from load_tests.verdict import BAD_INPUT, LoadError

LINE = '{"logger": "serving.telemetry.start_times", "message": "%s"}'
READY = "ready after 2.00 s (1.50): imports 1.25 (1.00), warm-up and gRPC 0.75 (0.50)"
COMPLETE = f"complete after 2.50 s (1.90): {READY.partition(': ')[2]}, other graphs 0.50 (0.40)"
IMPORTS = """
import time: self [us] | cumulative | imported package
import time:      1000 |       1000 |   numpy.core
import time:       500 |       1500 | numpy
starting
import time: self [us] | cumulative | imported package
import time:       700 |        700 | numpy
import time:        50 |         50 |   zmq
import time:        90 |         90 |   zmq
"""


def test_the_phases_of_a_line_of_the_log() -> None:
    assert startup.phases(READY) == {"imports": (1.25, 1.0), "warm-up and gRPC": (0.75, 0.5)}
    with pytest.raises(LoadError, match="no phases"):
        startup.phases("ready")


def test_the_last_worker_counts() -> None:
    first = COMPLETE.replace("1.25", "1.20")
    found = startup.worker_phases(["page: http://localhost", LINE % READY, LINE % first, LINE % COMPLETE])
    assert list(found) == ["imports", "warm-up and gRPC", "other graphs"]
    assert found["imports"].seconds == 1.25
    with pytest.raises(LoadError, match="complete"):
        startup.worker_phases([LINE % READY])


def test_imports_of_each_process_by_package() -> None:
    supervisor, worker = startup.imports(IMPORTS.splitlines())
    assert supervisor == {"numpy.core": 1000, "numpy": 500}
    assert worker == {"numpy": 700, "zmq": 50}
    assert startup.by_package([supervisor, {"numpy": 300}]) == {"numpy": Imported(1.3, 2)}


def test_the_page_and_its_picture(tmp_path: Path) -> None:
    starts = [
        {
            startup.SUPERVISOR: Phase(seconds, 1.2),
            "imports": Phase(1.0, 0.9),
            startup.PROBE: Phase(0.1, math.nan),
            startup.FIRST_ANSWER: Phase(0.03, math.nan),
            startup.OTHER_GRAPHS: Phase(0.6, 0.5),
        }
        for seconds in (1.5, 1.7, 1.6)
    ]
    packages = [{"numpy": Imported(40, 90)}, {"numpy": Imported(50, 91), "zmq": Imported(9, 4)}]
    page = startup.document(starts, [230, 240, 250], packages, {"CPU": "a"})
    assert "Ready after **2.7 s** (2.6 to 2.8, 3 starts)" in page
    assert "**240 MB**" in page
    assert "| first answer | 0.03 |  |" in page
    assert "| numpy | 40 | 90 | 50 | 91 |" in page
    assert "| zmq |  |  | 9 | 4 |" in page
    assert "| **all** | 40 | 90 | 59 | 95 |" in page
    startup.draw(starts, tmp_path / "startup.png")
    with Image.open(tmp_path / "startup.png") as picture:
        assert picture.width > 500


def test_no_start_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert startup.main(["--starts", "0"]) == BAD_INPUT
    assert capsys.readouterr().err == "startup: --starts: expected 1 or more\n"
