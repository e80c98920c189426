"""The example of docs/how-to/clients/bentoml.md runs as it stands, against a real server of the tiny model."""

import re
import subprocess
import sys
from pathlib import Path

from chestct.image import encode_png
from tests.graphs import tiny_picture
from tests.server import ROOT, Server

NORMAL = 2


def test_the_example_prints_a_label_for_each_image(server: Server, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "how-to" / "clients" / "bentoml.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "slice.png").write_bytes(encode_png(tiny_picture(NORMAL)[:, :, 0]))
    command = [sys.executable, "-c", example.replace("http://localhost:3000", server.url)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["accept", "normal"]] * 2
