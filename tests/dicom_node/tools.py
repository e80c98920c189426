"""DICOM's tools, and what they say about an object."""

import shutil
import subprocess
from pathlib import Path

import pytest

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
"""Orthanc and its plugin as Debian installs them."""


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip a test where this program is missing."""
    reason = f"no {program} here (Debian: apt-get install {package})"
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


needs_orthanc = pytest.mark.skipif(
    ORTHANC is None or not DICOMWEB.exists() or shutil.which("storescu") is None,
    reason="no Orthanc, its DICOMweb plugin or storescu here (Debian: apt-get install orthanc orthanc-dicomweb dcmtk)",
)


def run(*command: str | Path) -> str:
    """Return what a program prints, on both streams. Fails if the program does."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def errors(path: Path) -> list[str]:
    """What dciodvfy calls an error in an object. It exits with 1 if there is one."""
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
