"""The Python example of docs/how-to/score-an-archive.md reads a table that the command made."""

import re
import subprocess
import sys
from pathlib import Path

from archive.models import Model
from tests.archive.conftest import Fill
from tests.server import ROOT

PAGE = (ROOT / "docs/how-to/score-an-archive.md").read_text(encoding="utf-8")


def test_the_example_reads_the_table(model: Model, tmp_path: Path, fill: Fill) -> None:
    fill(tmp_path / "in", 20)
    score = [sys.executable, "-m", "archive", "score", str(tmp_path / "in"), str(tmp_path / "table")]
    call = [*score, "--model", str(model.graph.parent)]
    subprocess.run(call, cwd=ROOT, capture_output=True, timeout=300, check=True)
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    read = [sys.executable, "-c", example]
    done = subprocess.run(read, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counts = [int(line.split()[-1]) for line in done.stdout.splitlines() if line and line.split()[-1].isdecimal()]
    assert sum(counts) == 19
