"""int8: which convolutions it computes, the ranges that it takes from images, and its error."""

from pathlib import Path

import keras
import numpy as np
import onnx
import openvino
import pytest

from chestct.engine import Engine, Ranges, has_instructions
from pipeline.core.params import Export
from pipeline.graph.rounding import draw_images, measure_ranges, spread, with_float16_weights
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
CONVOLUTIONS = 5
"""Those of the small network with its head."""


@pytest.fixture(scope="module")
def exact() -> onnx.ModelProto:
    keras.utils.set_random_seed(0)
    network = build(PARAMS)
    width = summaries_of(network, PIXELS[:1]).shape[1]
    probe = LinearProbe(np.random.default_rng(1).normal(0, 1, width).astype(np.float32), np.float32(0))
    return serving_graph(network, PIXELS, LABELS, CALIBRATION, PARAMS, probe)


@pytest.fixture
def graph(exact: onnx.ModelProto, tmp_path: Path) -> Path:
    """The graph with weights in float16."""
    path = tmp_path / "model.onnx"
    onnx.save(with_float16_weights(exact), path)
    return path


def wanted(unrounded: float = 0) -> Export:
    return PARAMS.export.model_copy(update={"unrounded": unrounded, "calibration_images": len(PIXELS)})


def executed(graph: Path, ranges: Ranges) -> list[str]:
    """The precision in which each convolution runs, from the input on."""
    engine = Engine(graph, batch_sizes=(1,), arithmetic="int8", ranges=ranges)
    nodes = engine._requests[1].get_compiled_model().get_runtime_model().get_ordered_ops()
    kinds = [node.get_rt_info() for node in nodes]
    return [kind["runtimePrecision"].value for kind in kinds if kind["layerType"].value == "Convolution"]


@pytest.mark.skipif(not has_instructions("int8"), reason="int8 is exact only on a CPU with instructions for it")
def test_int8_computes_nearly_the_same_from_the_file_of_weights_in_float16(exact: onnx.ModelProto, graph: Path) -> None:
    ranges = measure_ranges(exact, PIXELS, wanted())
    rounded = Engine(graph, batch_sizes=(1, 8), arithmetic="int8", ranges=ranges)
    for one, other in zip(Engine(graph, batch_sizes=(8,)).infer(PIXELS), rounded.infer(PIXELS), strict=True):
        assert 0 < np.abs(one - other).mean() < 0.1 * np.abs(one).mean()
    alone = np.concatenate([rounded.infer(image[np.newaxis]).heatmaps for image in PIXELS])
    assert alone == pytest.approx(rounded.infer(PIXELS).heatmaps, abs=1e-4), "an answer does not depend on the batch"


@pytest.mark.parametrize(
    ("unrounded", "expected"), [(0, ["u8"] * 4 + ["f32"]), (0.6, ["f32", "f32", "u8", "u8", "f32"])]
)
def test_every_convolution_runs_in_int8_but_the_head_and_those_next_to_the_input(
    exact: onnx.ModelProto, graph: Path, unrounded: float, expected: list[str]
) -> None:
    assert executed(graph, measure_ranges(exact, PIXELS, wanted(unrounded))) == expected
    assert executed(graph, {}) == ["f32"] * CONVOLUTIONS


def test_the_convolutions_next_to_the_input_add_error(exact: onnx.ModelProto, graph: Path) -> None:
    truth = Engine(graph, batch_sizes=(8,)).infer(PIXELS).heatmaps
    errors = []
    for unrounded in (0.6, 0):
        ranges = measure_ranges(exact, PIXELS, wanted(unrounded))
        scores = Engine(graph, batch_sizes=(8,), arithmetic="int8", ranges=ranges).infer(PIXELS)
        errors.append(float(np.abs(scores.heatmaps - truth).mean()))
    assert 0 < errors[0] < errors[1]


def test_a_range_is_the_mean_of_the_images_lowest_and_highest_values(exact: onnx.ModelProto, graph: Path) -> None:
    ranges = measure_ranges(exact, PIXELS, wanted())
    name = next(iter(ranges))
    core = openvino.Core()
    model = core.read_model(graph)
    watched = next(each for node in model.get_ops() for each in node.outputs() if name in each.get_names())
    compiled = core.compile_model(openvino.Model([watched], model.get_parameters()), "CPU")
    values = [compiled({"pixels": image[np.newaxis]})[0] for image in PIXELS]
    low, high = (float(np.mean([end(value) for value in values])) for end in (np.min, np.max))
    assert ranges[name] == pytest.approx((low, high), abs=1e-3)
    assert len(ranges) == CONVOLUTIONS - 1


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
