from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from chestct.engine import Engine
from pipeline.graph.rounding import draw_images, quantise, spread
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import LinearProbe
from pipeline.network.build import build
from pipeline.network.summary import summaries_of
from tests.graphs import tiny_card
from tests.pipeline.conftest import small_params

PARAMS = small_params(prepare__image_size=32)
LABELS = np.arange(24) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1), dtype=np.uint8)
CARD = tiny_card()
CALIBRATION = Calibration(scaling=CARD.scaling, thresholds=CARD.thresholds, input_limits=CARD.input_limits)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """float32 and int8."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("graphs")
    network = build(PARAMS)
    width = summaries_of(network, PIXELS[:1]).shape[1]
    probe = LinearProbe(np.random.default_rng(1).normal(0, 1, width).astype(np.float32), np.float32(0))
    exact = serving_graph(network, PIXELS, LABELS, CALIBRATION, PARAMS, probe)
    onnx.save(exact, folder / "float32.onnx")
    onnx.save(quantise(exact, PIXELS), folder / "int8.onnx")
    return folder / "float32.onnx", folder / "int8.onnx"


def test_int8_computes_nearly_the_same_with_a_quarter_of_the_bytes(graphs: tuple[Path, Path]) -> None:
    exact, quantised = (Engine(path, batch_sizes=(8,)).infer(PIXELS) for path in graphs)
    for one, other in zip(exact, quantised, strict=True):
        assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()
    kernels, quarter = (
        sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)
        for path in graphs
    )
    assert quarter == kernels / 4


def test_every_convolution_runs_in_int8_and_nothing_else_does(graphs: tuple[Path, Path]) -> None:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    for path, expected in zip(graphs, ("f32", "u8"), strict=True):
        model = openvino.Core().read_model(path)
        model.reshape({"pixels": [1, 32, 32, 1]})
        executed = openvino.Core().compile_model(model, "CPU", settings).get_runtime_model().get_ops()
        kinds = [(op.get_rt_info()["layerType"].value, op.get_rt_info()["runtimePrecision"].value) for op in executed]
        assert [precision for kind, precision in kinds if kind == "Convolution"] == [expected] * 4
        assert {precision for kind, precision in kinds if kind == "FullyConnected"} == {"f32"}


def test_the_convolutions_next_to_the_input_can_stay_as_they_are(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.onnx"
    onnx.save(quantise(onnx.load(graphs[0]), PIXELS, unrounded=0.6), mixed)
    model = openvino.Core().read_model(mixed)
    model.reshape({"pixels": [1, 32, 32, 1]})
    executed = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    kinds = [op.get_rt_info() for op in executed.get_ordered_ops()]
    found = [kind["runtimePrecision"].value for kind in kinds if kind["layerType"].value == "Convolution"]
    assert found == ["f32", "f32", "u8", "u8"], "0.6 of four, rounded down"
    exact, closer, rounded = (Engine(path, batch_sizes=(8,)).infer(PIXELS) for path in (graphs[0], mixed, graphs[1]))
    errors = [float(np.abs(each.heatmaps - exact.heatmaps).mean()) for each in (closer, rounded)]
    assert 0 < errors[0] < errors[1]


def test_onnx_runtime_can_run_the_int8_graph_too(graphs: tuple[Path, Path]) -> None:
    _, path = graphs
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, session.run(None, {"pixels": PIXELS}), strict=True))
    ours = Engine(path, batch_sizes=(8,)).infer(PIXELS)
    assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=0.02)
    assert theirs["heatmaps"] == pytest.approx(ours.heatmaps, abs=0.05 * float(np.abs(ours.heatmaps).max()))


def test_the_images_for_the_ranges_are_spread_over_all_images() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    assert spread(images, 5).ravel().tolist() == [0, 24, 49, 74, 99]
    assert len(spread(images, 200)) == 100


def test_each_draw_takes_other_images_and_the_first_those_that_are_spread() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    draws = [draw_images(images, 5, number).ravel().tolist() for number in range(3)]
    assert draws[0] == spread(images, 5).ravel().tolist()
    assert len({tuple(draw) for draw in draws}) == 3
    assert all(len(set(draw)) == 5 and draw == sorted(draw) for draw in draws)
    assert draw_images(images, 5, 2).ravel().tolist() == draws[2], "a draw is the same each time"
    assert len(draw_images(images, 200, 1)) == 100
