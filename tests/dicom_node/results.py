"""Scores for tests of the objects, as the service would give them."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.card import DISCLAIMER
from dicom_node.revisions import RevisionFolder
from dicom_node.score import Answer, Explanation, Lineage, Model, Result
from dicom_node.spool import Spool
from tests.dicom_node.slices import ct_slice, written

CLASSES = ("adenocarcinoma", "large_cell_carcinoma", "normal", "squamous_cell_carcinoma")
DIGEST = "ab" * 32


def model(**changes: Any) -> Model:
    values: dict[str, Any] = {
        "model": "chestct:abc",
        "classes": CLASSES,
        "normal": "normal",
        "titles": {name: name.replace("_", " ").capitalize() for name in CLASSES},
        "rules": {"close_call": "The two most probable classes are too close to call."},
        "lineage": Lineage(model_sha256=DIGEST),
        "disclaimer": DISCLAIMER,
    }
    return Model(**{**values, **changes})


def answer(*probabilities: float, **changes: Any) -> Answer:
    """An accepted answer with these probabilities, in the order of CLASSES."""
    named = dict(zip(CLASSES, probabilities, strict=True))
    values: dict[str, Any] = {
        "decision": "accept",
        "label": max(named, key=named.__getitem__),
        "probabilities": named,
        "model": "chestct:abc",
    }
    return Answer(**{**values, **changes})


def png(levels: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def revision(folder: Path, count: int, **elements: Any) -> RevisionFolder:
    """Return the first revision of a series with this many slices. `elements` replace header elements."""
    spool = Spool(folder / "spool", 10**9)
    for number in range(1, count + 1):
        spool.take("key", f"{number:02}", written(ct_slice(number=number, **elements)))
    made = RevisionFolder.close(spool, "key", 64)
    assert made is not None
    return made


def result(*answers: Answer, top: str | None = "01", **changes: Any) -> Result:
    """The result of a revision with these answers. `top` is the slice that is explained."""
    grey = np.full((64, 64), 100, np.uint8)
    heat = np.zeros((8, 8), np.uint8)
    heat[2:4, 5:7] = 255
    explained = None if top is None else Explanation(name=top, preview=png(grey), heatmap=png(heat), shown=CLASSES[0])
    named = {f"{number:02}": one for number, one in enumerate(answers, 1)}
    return Result(model=model(**changes), answers=named, explanation=explained)
