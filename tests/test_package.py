"""The Python package: what is in it, and that its command starts."""

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import chestct
from tests.server import ROOT

PACKAGES = ("archive", "chestct", "dicom_node", "pipeline", "serving")

pytestmark = pytest.mark.skipif(
    find_spec("setuptools") is None or find_spec("uv") is None, reason="needs uv and setuptools of the development set"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as `make package` builds it, but without the network, from a copy of what git knows."""
    folder = tmp_path_factory.mktemp("package")
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, known.split("\0")):
        target = folder / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    build = [sys.executable, "-m", "uv", "build", "--offline", "--no-build-isolation", "--python", sys.executable]
    done = subprocess.run([*build, "--out-dir", folder, folder / "clone"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / f"chestct-{chestct.__version__}-py3-none-any.whl"


def test_it_holds_every_file_of_its_packages(wheel: Path) -> None:
    listed = ["git", "ls-files", *PACKAGES]
    known = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    with zipfile.ZipFile(wheel) as package:
        held = {name for name in package.namelist() if ".dist-info/" not in name}
    assert held == set(known)


def test_its_command_starts_outside_of_a_clone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as package:
        package.extractall(tmp_path)
    code = "import sys; from archive.command import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "chestct" in done.stdout
