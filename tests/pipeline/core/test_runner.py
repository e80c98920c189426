"""How a stage ends that is not finished."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chestct.interrupts import INTERRUPTED
from pipeline.core import paths, runner
from pipeline.core.params import Params
from tests.server import ROOT


def test_ctrl_c_ends_a_stage_with_one_line_and_the_exit_code_of_a_shell(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(_: Params) -> None:
        raise KeyboardInterrupt  # as Python does on SIGINT

    paths.PARAMS.write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(SystemExit) as caught:
        runner.run(train)
    assert caught.value.code == INTERRUPTED
    assert capsys.readouterr().err == "\ntrain: stopped\n"


def test_a_command_that_is_stopped_while_it_draws_shows_no_traceback(workspace: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    paths.PARAMS.write_text(text.replace("source: kaggle", "source: synthetic").replace("train: 60", "train: 9000"))
    # A shell's job in the background ignores SIGINT, and so would its child.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "pipeline.ingest"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as stage:
        assert stage.stderr is not None
        said = b""
        while b"drawing phantoms" not in said:
            said += stage.stderr.read1()
        stage.send_signal(signal.SIGINT)
        said += stage.stderr.read()
    assert stage.returncode == INTERRUPTED
    assert said.splitlines()[-1] == b"ingest: stopped"
    assert b"Traceback" not in said


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's allocator")
def test_a_stage_clears_the_pages_of_a_large_tensor_only_once() -> None:
    code = """
import resource
from pipeline.core.runner import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (128 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    first, *later = map(int, subprocess.check_output([sys.executable, "-c", code], cwd=ROOT).split())
    assert max(later) < first / 5


@pytest.mark.parametrize(("option", "status"), [("-h", 0), ("--force", 2)])
def test_a_stage_without_arguments_says_so_and_does_not_run(option: str, status: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.code", option],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert "usage: python -m pipeline.code [-h]" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
