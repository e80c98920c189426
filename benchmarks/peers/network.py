"""What a peer computes with: the service's weights, by one of two engines that PEER_ENGINE names."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from chestct import engine, image
from chestct.card import ModelCard
from chestct.image import Facts
from chestct.prediction import decide
from chestct.standard_picture import find_body, standardise
from chestct.store import CARD, GRAPH

FOLDER: Final = Path(os.environ["PEER_MODEL"])
"""Folder of the graph and its card."""


class Network(Protocol):
    """Answers files one at a time."""

    def answer(self, data: bytes) -> dict[str, Any]:
        """The fields of the service's answer for a PNG or JPEG."""
        ...


class OnnxRuntime:
    """ONNX Runtime in float32 with one thread a process, and a simple decoder with Pillow.

    The standard picture is the service's own: the graph was trained on it, so every server of the graph needs it.
    """

    def __init__(self) -> None:
        self.card: Final = ModelCard.read(FOLDER / CARD)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # a process has one core; more threads would only compete for it
        self._session = ort.InferenceSession(FOLDER / GRAPH, options, providers=["CPUExecutionProvider"])

    def to_pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The pixels of a picture, uint8 [height, width, 1]."""
        grey, spec = picture.convert("L"), self.card.input
        return standardise(grey, find_body(grey), spec.width, spec.height)[:, :, np.newaxis]

    def answer_pixels(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The fields of the service's answer for pixels, uint8 [N, height, width, 1]."""
        names = ["probabilities", "ood_score", "chest_ct"]
        scores = zip(*self._session.run(names, {"pixels": pixels}), strict=True)
        return [_describe(self.card, np.minimum(row, 1), ood, chest_ct, None) for row, ood, chest_ct in scores]

    def answer(self, data: bytes) -> dict[str, Any]:
        """See Network."""
        (answer,) = self.answer_pixels(self.to_pixels(Image.open(BytesIO(data)))[None])
        return answer


class SameEngine:
    """The service's own decoder, engine and arithmetic, with one thread a process."""

    def __init__(self) -> None:
        self.card: Final = ModelCard.read(FOLDER / CARD)
        self._engine: Final = engine.load(FOLDER / GRAPH, self.card, threads=1, batch_sizes=(1,))

    def answer(self, data: bytes) -> dict[str, Any]:
        """See Network."""
        picture = image.decode(data, self.card.input)
        scores = self._engine.infer(picture.pixels[np.newaxis])
        return _describe(self.card, scores.probabilities[0], scores.ood_score[0], scores.chest_ct[0], picture.facts)


def load() -> Network:
    """The network with the engine that PEER_ENGINE names: `same`, or ONNX Runtime."""
    return SameEngine() if os.environ.get("PEER_ENGINE") == "same" else OnnxRuntime()


def _describe(
    card: ModelCard, probabilities: NDArray[np.float32], ood: float, chest_ct: float, facts: Facts | None
) -> dict[str, Any]:
    return decide(card, probabilities, float(ood), float(chest_ct), facts, request_id="", model="peer").model_dump()
