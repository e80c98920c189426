"""Libraries that report their use to their makers, unless they are told not to."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import ROOT


@pytest.mark.parametrize(
    "module", ["service", "chestct.engine", "benchmarks.engine_variants", "pipeline.graph.rounding"]
)
def test_no_library_reports_its_use(tmp_path: Path, module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in sys.modules if 'openvino_telemetry' in name))"
    home = {"HOME": str(tmp_path), "BENTOML_HOME": str(tmp_path / "bentoml"), "CI": ""}  # in CI they report nothing
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=home, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    # Both keep the number by which they report this machine: OpenVINO in `intel`, ONNX Runtime below `.cache`.
    assert not (tmp_path / "intel").exists()
    assert not (tmp_path / ".cache" / "Microsoft").exists()
