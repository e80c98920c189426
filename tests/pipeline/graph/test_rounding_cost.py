"""What an arithmetic costs is measured on images that neither the network nor its ranges have seen."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from chestct.engine import Scores
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.graph import rounding_cost
from pipeline.graph.rounding import draw_images
from pipeline.graph.rounding_cost import OTHERS, Slices, check_difference, hold_out
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import UNFITTED
from pipeline.judging.probe_pictures import ProbePictures
from pipeline.network.build import build
from tests.graphs import plain_facts, tiny_card
from tests.pipeline.conftest import small_params

PARAMS = small_params(prepare__image_size=32)
LABELS = np.arange(24) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1), dtype=np.uint8)
SLICES = Slices(PIXELS, LABELS, np.arange(24) // 12, np.arange(24) // 2, [plain_facts()] * 24)
CARD = tiny_card()
CALIBRATION = Calibration(scaling=CARD.scaling, thresholds=CARD.thresholds, input_limits=CARD.input_limits)


def other_pictures(rows: list[int]) -> ProbePictures:
    """Pictures of which each is made from the slice in its row, or from none if that is -1."""
    pixels = np.random.default_rng(1).integers(0, 256, (len(rows), 32, 32, 1), dtype=np.uint8)
    return ProbePictures(pixels, np.full(len(rows), "noise"), np.zeros(len(rows), bool), np.array(rows))


def save_folds() -> onnx.ModelProto:
    """Write two folds of one untrained network, and probes that take every picture for a chest CT. Return its graph."""
    network = build(PARAMS)
    graph = serving_graph(network, PIXELS, LABELS, CALIBRATION, PARAMS, UNFITTED)
    paths.FOLD_MODELS.mkdir(parents=True)
    for fold in range(2):
        network.save(paths.fold_model(fold))
    np.savez(paths.TRUST, probe_weights=np.zeros((2, 1), np.float32), probe_bias=np.full(2, 20, np.float32))
    return graph


def test_the_cost_is_measured_on_images_that_neither_the_network_nor_the_ranges_saw(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = save_folds()
    others = other_pictures([1, 23])
    every = np.concatenate([PIXELS, others.pixels])
    looked_at: list[tuple[str, list[int]]] = []

    def recorded(name: str, function: Any) -> Any:
        def call(first: Any, pixels: Any, *rest: Any, **more: Any) -> Any:
            looked_at.append((name, [int((image == every).all(axis=(1, 2, 3)).argmax()) for image in pixels]))
            return function(first, pixels, *rest, **more)

        return call

    monkeypatch.setattr(rounding_cost, "serving_graph", recorded("trained", lambda *_: graph))
    ranges_of = rounding_cost.measure_ranges

    def measure_ranges(exact: Any, pixels: Any, wanted: Any, draw: int) -> Any:
        return recorded("ranges", lambda *_: ranges_of(exact, pixels, wanted, draw))(
            exact, draw_images(pixels, wanted.calibration_images, draw)
        )

    monkeypatch.setattr(rounding_cost, "measure_ranges", measure_ranges)
    answered = recorded("answered", rounding_cost.infer)
    options_of: list[dict[str, Any]] = []

    def infer(*parts: Any, **options: Any) -> Scores:
        options_of.append(options)
        scores: Scores = answered(*parts, **options)
        return scores

    monkeypatch.setattr(rounding_cost, "infer", infer)
    params = PARAMS.changed({"export.draws": 2, "export.calibration_images": 8})
    figures, described = rounding_cost.measure(SLICES, others, CALIBRATION, params, ["int8"])["int8"]
    first, second = set(range(12)), set(range(12, 24))
    seen = [(name, set(images)) for name, images in looked_at]
    for fold, (held_out, training) in enumerate([(first | {24}, second), (second | {25}, first)]):
        trained, *ranges, exact, one, other = seen[6 * fold : 6 * fold + 6]
        assert trained == ("trained", training)
        assert [name for name, _ in ranges] == ["ranges", "ranges"]
        assert all(len(images) == 8 and images < training for _, images in ranges)
        assert ranges[0] != ranges[1], "two draws"
        assert exact == one == other == ("answered", held_out)
    assert [options.get("arithmetic") for options in options_of] == [None, "int8", "int8"] * 2
    assert options_of[1]["ranges"] != options_of[2]["ranges"]
    assert figures["agreement"].low <= figures["agreement"].value <= figures["agreement"].high
    assert figures["agreement"].value >= 0.75
    fall = described["float32_accuracy"] - described["served_accuracy"]
    assert figures["accuracy_fall"].value == pytest.approx(fall)


def test_float32_in_place_of_bfloat16_costs_nothing_and_is_measured_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = save_folds()
    monkeypatch.setattr(rounding_cost, "serving_graph", lambda *_: graph)
    asked: list[str] = []
    inferred = rounding_cost.infer

    def infer(graph: onnx.ModelProto, pixels: Any, arithmetic: str = "float32", **options: Any) -> Scores:
        asked.append(arithmetic)
        return inferred(graph, pixels, batch_sizes=(1,))

    monkeypatch.setattr(rounding_cost, "infer", infer)
    found = rounding_cost.measure(SLICES, other_pictures([-1]), CALIBRATION, PARAMS, ["bfloat16"])
    assert asked == ["float32", "bfloat16"] * 2, "once for each fold"
    figures, _ = found["bfloat16"]
    assert figures["same_decision"].value == figures["same_unfamiliar"].value == figures["agreement"].value == 1
    assert abs(figures["loss_rise"].value) < 1e-3, "the weights are in float16"


def test_a_picture_made_from_a_slice_is_held_out_with_it_and_the_rest_are_spread() -> None:
    asked = hold_out(SLICES, other_pictures([3, 20, -1, -1]))
    assert asked.pixels.shape == (28, 32, 32, 1)
    assert asked.folds[24:].tolist() == [0, 1, 0, 1]
    assert asked.groups[24:].tolist() == [SLICES.scans[3], SLICES.scans[20], -3, -4]
    assert len(hold_out(SLICES, other_pictures([-1] * 2 * OTHERS)).folds) == 24 + OTHERS


def test_a_difference_above_the_tolerance_is_refused() -> None:
    exact = np.zeros((2, 4), np.float32)
    assert check_difference(exact, exact + np.float32(0.25), 0.25, "logits differ") == 0.25
    for other in (exact + np.float32(0.5), np.full_like(exact, np.nan)):
        with pytest.raises(StageError, match=r"^logits differ by (5\.0e-01|nan), allowed is 2\.5e-01$") as caught:
            check_difference(exact, other, 0.25, "logits differ")
        assert caught.value.exit_code == 3
