"""The service's weights in ONNX Runtime fp32 with one thread a process, and a simple decoder with Pillow.

The standard picture is the service's own: the graph was trained on it, so every server of the graph needs it.
"""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from chestct.card import ModelCard
from chestct.prediction import decide
from chestct.standard_picture import find_body, standardise
from chestct.store import CARD, GRAPH

FOLDER: Final = Path(os.environ["PEER_MODEL"])


class Network:
    def __init__(self) -> None:
        self.card: Final = ModelCard.read(FOLDER / CARD)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # a process has one core; more threads would only compete for it
        self._session = ort.InferenceSession(FOLDER / GRAPH, options, providers=["CPUExecutionProvider"])

    def to_pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return pixels, uint8 [height, width, 1]."""
        grey, spec = image.convert("L"), self.card.input
        return standardise(grey, find_body(grey), spec.width, spec.height)[:, :, np.newaxis]

    def answer(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Return the fields of the service's answer for pixels, uint8 [N, height, width, 1]."""
        names = ["probabilities", "ood_score", "chest_ct"]
        scores = zip(*self._session.run(names, {"pixels": pixels}), strict=True)
        return [
            decide(
                self.card, np.minimum(row, 1), float(ood), float(chest_ct), None, request_id="", model="peer"
            ).model_dump()
            for row, ood, chest_ct in scores
        ]
