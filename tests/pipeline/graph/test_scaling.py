"""A graph gets another calibration, and nothing else of it changes."""

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from scipy.special import softmax

from chestct.card import Scaling
from chestct.engine import Engine
from pipeline.graph.rounding import with_float16_weights
from pipeline.graph.scaling import SCALED, with_scaling
from pipeline.graph.to_onnx import TrustHead, to_onnx
from pipeline.judging import ood
from pipeline.judging.chest_ct import UNFITTED
from pipeline.network.build import LOGITS, build, features_of
from tests.pipeline.conftest import small_params

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
SCALINGS = (
    Scaling(method="temperature", scale=(1.0,) * 4, shift=(0.0,) * 4),
    Scaling(method="temperature", scale=(2.5,) * 4, shift=(0.0,) * 4),
    Scaling(method="normal_apart", scale=(0.6, 1.0, 3.0, 0.2), shift=(0.1, 0.0, -2.0, 1.5)),
)


@pytest.fixture(scope="module")
def exported() -> tuple[onnx.ModelProto, np.ndarray]:
    """The graph of a small network, with a scaling that changes nothing, and the bias of its logits."""
    keras.utils.set_random_seed(0)
    network = build(small_params(prepare__image_size=32))
    score = ood.fit("mahalanobis", features_of(network, PIXELS), np.arange(8) % 4, 4)
    head = network.get_layer(LOGITS)
    return to_onnx(network, TrustHead(head, SCALINGS[0], score, UNFITTED)), head.get_weights()[1]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_new_scaling_is_applied_to_the_same_logits(
    exported: tuple[onnx.ModelProto, np.ndarray], tmp_path: Path, kind: str
) -> None:
    exact, bias = exported
    graph = with_float16_weights(exact) if kind == "float16" else exact
    before = None
    for scaling in SCALINGS:
        onnx.save(with_scaling(graph, scaling), tmp_path / "scaled.onnx")
        scores = Engine(tmp_path / "scaled.onnx", batch_sizes=(8,)).infer(PIXELS)
        logits = scores.heatmaps.mean(axis=(2, 3), dtype=np.float64) + bias
        assert scores.probabilities == pytest.approx(softmax(scaling.apply(logits), axis=1), abs=1e-5)
        if before is not None:
            assert np.array_equal(scores.heatmaps, before.heatmaps)
            assert np.array_equal(scores.ood_score, before.ood_score)
            assert np.abs(scores.probabilities - before.probabilities).max() > 0.01
        before = scores


def test_a_graph_without_the_named_nodes_is_refused(exported: tuple[onnx.ModelProto, np.ndarray]) -> None:
    older = onnx.ModelProto()
    older.CopyFrom(exported[0])
    for node in older.graph.node:
        node.output[:] = [name.replace(SCALED, "mul:0") for name in node.output]
    with pytest.raises(ValueError, match="its graph has no nodes scaled_logits and calibrated_logits"):
        with_scaling(older, SCALINGS[1])
