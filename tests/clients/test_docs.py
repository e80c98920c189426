"""The examples of docs/how-to/clients for these clients run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "how-to" / "clients"
EXAMPLES = [
    pytest.param(example, id=f"{page}-{number}")
    for page in ("tritonclient", "kserve")
    for number, example in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_prints_the_label(example: str) -> None:
    here = example.replace("localhost:3000", os.environ["HTTP"]).replace("localhost:3001", os.environ["GRPC"])
    folder = Path(os.environ["IMAGE"]).parent
    done = subprocess.run([sys.executable, "-c", here], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "normal" in done.stdout
