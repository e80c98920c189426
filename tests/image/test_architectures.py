"""Every pin that the image installs has a wheel for each architecture of a release."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from load_tests.server import ROOT

BASE = re.search(r"^ARG BASE=\S*python:(\S+?)-slim-(\w+)@", (ROOT / "image/Containerfile").read_text("utf-8"), re.M)
GLIBC = {"bookworm": "2_36", "trixie": "2_41"}
"""glibc of each Debian release."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
NO_NETWORK = ("Could not connect", "error sending request", "operation timed out")
"""Words of a connection that failed. An answer of the registry, such as 404, has none of them."""


def architectures() -> list[str]:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text(encoding="utf-8"))
    return [entry["architecture"] for entry in workflow["jobs"]["build"]["strategy"]["matrix"]["include"]]


def resolve(requirements: Path, architecture: str, target: Path) -> subprocess.CompletedProcess[str]:
    """Ask the registry for a wheel of each pin. Nothing is downloaded or installed."""
    assert BASE
    python, debian = BASE.groups()
    platform = f"{MACHINES[architecture]}-manylinux_{GLIBC[debian]}"
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--target", target, "--no-deps"]
    command += ["--python-version", python.rpartition(".")[0], "--python-platform", platform]
    command += ["--require-hashes", "--only-binary", ":all:", "--requirements", requirements]
    environment = {**os.environ, "UV_HTTP_RETRIES": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_release_is_built_for_both_architectures() -> None:
    assert architectures() == ["amd64", "arm64"]


@pytest.mark.parametrize("architecture", architectures())
@pytest.mark.parametrize("name", ["serving", "load", "image"])
def test_every_pin_has_a_wheel(tmp_path: Path, name: str, architecture: str) -> None:
    done = resolve(ROOT / f"requirements/{name}.txt", architecture, tmp_path / "none")
    if any(words in done.stderr for words in NO_NETWORK):
        pytest.skip("no registry of packages can be reached")
    assert done.returncode == 0, done.stderr
    wanted = {"bentoml", "openvino", "grpcio"}
    assert wanted <= set(re.findall(r"^ \+ ([\w.-]+)==", done.stderr, re.MULTILINE))


def test_a_pin_without_a_wheel_is_noticed(tmp_path: Path) -> None:
    """pywin32 has wheels for Windows alone."""
    file = tmp_path / "requirements.txt"
    file.write_text(f"pywin32==311 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    done = resolve(file, "arm64", tmp_path / "none")
    if any(words in done.stderr for words in NO_NETWORK):
        pytest.skip("no registry of packages can be reached")
    assert done.returncode != 0
    assert "pywin32==311 has no wheels with a matching" in done.stderr
