"""Stores notebooks with small pictures of phantoms, and refuses those of other images."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from docs.notebooks import COLOURS, DIGEST, WIDEST, digest_of, stored
from tests.server import ROOT


def executed() -> dict[str, Any]:
    """A notebook as Jupyter executes it: a large picture, text, and a progress bar."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (600, 1200, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    picture = {"data": {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": ["<Figure>"]}}
    outputs = [
        {"output_type": "display_data", "metadata": {"width": 1}, **picture},
        {"output_type": "stream", "name": "stdout", "text": ["four\n"]},
        {"output_type": "stream", "name": "stderr", "text": ["100%"]},
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# One"]},
        {"cell_type": "code", "metadata": {"execution": {"time": 1}}, "source": ["f()"], "outputs": outputs},
    ]
    return {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}, "language_info": {"version": "3.11.7"}}}


def test_pictures_are_small_and_messages_and_times_are_left_out() -> None:
    notebook = stored(executed())
    picture, text = notebook["cells"][1]["outputs"]
    assert text["text"] == ["four\n"]
    with Image.open(io.BytesIO(base64.b64decode(picture["data"]["image/png"]))) as image:
        assert image.size == (WIDEST, WIDEST // 2)
        assert len(image.convert("RGB").getcolors() or ()) <= COLOURS
    assert notebook["cells"][1]["metadata"] == {}
    assert notebook["metadata"][DIGEST] == digest_of(notebook)


def test_another_picture_has_another_digest() -> None:
    notebook = stored(executed())
    notebook["cells"][1]["outputs"][0]["data"]["image/png"] = "AAAA"
    assert notebook["metadata"][DIGEST] != digest_of(notebook)


def test_a_project_of_other_images_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "docs.notebooks", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "was trained on kaggle images, and only phantoms may be stored" in line
