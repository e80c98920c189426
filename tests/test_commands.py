"""A command that is asked for help gives it, and does nothing else."""

import subprocess
import sys

import pytest

from tests.chestct.test_interrupts import ELSEWHERE, entries
from tests.server import ROOT
from tests.waiting import PATIENCE

WITHOUT_HELP = {
    "chestct/interrupts.py",  # what follows is another command's
    "dicom_node/__main__.py",  # it has an environment of its own, and its settings are variables
    "image/slim.py",  # the image's build runs it; it says in one line what it expects
    "load_tests/promises/attackers.py",  # a part of `make hold`
    "tests/clients/__main__.py",  # pytest's
    "tests/dicom_node/__main__.py",  # pytest's
}


def commands() -> list[str]:
    """All but the stages, whose help tests/pipeline/core/test_runner.py tests once for all."""
    asked = sorted({*entries()} - {*ELSEWHERE} - WITHOUT_HELP)
    return [path for path in asked if "runner.run(" not in (ROOT / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", commands())
def test_a_command_explains_itself(path: str) -> None:
    module = path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    done = subprocess.run(
        [sys.executable, "-m", module, "-h"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr  # a library may warn there, such as TensorFlow of some CPUs
    assert done.stdout.startswith("usage: ")


def test_all_that_has_no_help_is_there() -> None:
    assert {*entries()} - {*ELSEWHERE} >= WITHOUT_HELP
