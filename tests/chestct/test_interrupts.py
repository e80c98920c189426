"""Ctrl-C while a command imports: one line and exit code 130, whatever it is importing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chestct.interrupts import INTERRUPTED
from tests.server import ROOT

INTERRUPT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize module that sends SIGINT at the import of one module."""


def run(folder: Path, at: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with an interrupt at the import of the module `at`."""
    (folder / "sitecustomize.py").write_text(INTERRUPT.format(module=at), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "at"),
    [
        ("pipeline.train", "numpy"),
        ("pipeline.train", "tensorflow"),
        ("pipeline.store", "pydantic"),
        ("serving.release", "bentoml"),
        ("benchmarks.tune", "matplotlib"),
        ("load_tests.run", "psutil"),
        ("archive", "numpy"),
    ],
)
def test_an_interrupt_during_imports_ends_in_one_line(tmp_path: Path, command: str, at: str) -> None:
    done = run(tmp_path, at, command)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydantic'] = None\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serving.release"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "pydantic" in done.stderr


def test_a_program_that_imports_a_package_keeps_its_own_hook() -> None:
    code = "import sys, serving, load_tests; print(sys.excepthook is sys.__excepthook__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
