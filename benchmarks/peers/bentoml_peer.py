"""BentoML's batchable image API as its documentation shows it: `bentoml serve benchmarks.peers.bentoml_peer:Peer`."""

import os
from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image


@bentoml.service(workers=int(os.environ.get("PEER_WORKERS", "1")))
class Peer:
    def __init__(self) -> None:
        from benchmarks.peers.network import OnnxRuntime

        self.network = OnnxRuntime()

    @bentoml.api(batchable=True)
    def predict(self, images: list[Image]) -> list[dict[str, Any]]:
        return self.network.answer_pixels(np.stack([self.network.to_pixels(image) for image in images]))
