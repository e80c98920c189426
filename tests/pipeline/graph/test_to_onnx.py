"""The ONNX graph computes what Keras does, with kernels in half the bytes."""

import keras
import numpy as np
import onnx
import pytest

from chestct.card import Scaling
from chestct.engine import Engine
from pipeline.graph.rounding import with_float16_weights
from pipeline.graph.to_onnx import TrustHead, to_onnx
from pipeline.judging import ood
from pipeline.judging.chest_ct import LinearProbe
from pipeline.network.build import FEATURES, LOGITS, build, features_of
from pipeline.network.summary import summaries_of
from tests.graphs import input_channels
from tests.pipeline.conftest import small_params

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
LABELS = np.arange(24) % 4
SCALING = Scaling(method="normal_apart", scale=(0.6, 0.5, 0.7, 0.6), shift=(0.1, 0.0, -0.2, 0.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network, its trust head, and its graph before and after rounding."""
    network = build(small_params())
    features = features_of(network, PIXELS)
    distance = ood.fit("mahalanobis", features, LABELS, 4)
    summaries = summaries_of(network, PIXELS)
    weights = np.random.default_rng(1).normal(0, 1, summaries.shape[1]).astype(np.float32)
    logits = summaries @ weights
    probe = LinearProbe(weights / logits.std(), np.float32(-logits.mean() / logits.std()))
    head = TrustHead(network.get_layer(LOGITS), SCALING, distance, probe)
    exact = to_onnx(network, head)
    folder = tmp_path_factory.mktemp("graphs")
    onnx.save(exact, folder / "exact.onnx")
    onnx.save(with_float16_weights(exact), folder / "rounded.onnx")
    return network, (distance, probe), folder


def test_the_graph_computes_what_keras_does(exported):
    network, (distance, probe), folder = exported
    scores = Engine(folder / "exact.onnx").infer(PIXELS)
    logits = network.predict_on_batch(PIXELS)
    bias = network.get_layer(LOGITS).get_weights()[1]
    assert scores.heatmaps.mean(axis=(2, 3)) + bias == pytest.approx(logits, abs=1e-4)
    exponents = np.exp(SCALING.apply(logits))
    softmax = exponents / exponents.sum(axis=1, keepdims=True)
    assert scores.probabilities == pytest.approx(softmax, abs=1e-5)
    features = features_of(network, PIXELS)
    assert scores.ood_score == pytest.approx(distance(features), rel=1e-3)
    expected = 1 / (1 + np.exp(-(summaries_of(network, PIXELS) @ probe.weights + probe.bias)))
    assert scores.chest_ct == pytest.approx(expected, abs=1e-3)
    assert expected.min() < 0.4 < 0.6 < expected.max()
    maps = network.get_layer(FEATURES).input
    assert scores.heatmaps.shape == (24, 4, *maps.shape[1:3])


def test_the_first_convolution_takes_one_channel(exported):
    _, _, folder = exported
    assert input_channels(onnx.load(folder / "exact.onnx")) == 1


def test_no_map_is_transposed_and_batch_norms_are_part_of_the_convolutions(exported):
    network, _, folder = exported
    graph = onnx.load(folder / "exact.onnx").graph
    assert "Transpose" not in {node.op_type for node in graph.node}
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    convolutions = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    after = [node.op_type for node in graph.node if convolutions.intersection(node.input)]
    assert norms
    assert not {"Mul", "Sub", "Div"}.intersection(after)


def test_rounding_halves_the_kernels_and_moves_probabilities_little(exported):
    _, _, folder = exported
    exact, rounded = (Engine(folder / name).infer(PIXELS) for name in ("exact.onnx", "rounded.onnx"))
    assert 0 < np.abs(exact.probabilities - rounded.probabilities).max() <= 0.01
    sizes = [(folder / name).stat().st_size for name in ("exact.onnx", "rounded.onnx")]
    assert sizes[1] < 0.75 * sizes[0]
