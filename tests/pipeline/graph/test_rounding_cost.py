from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestct.engine import Scores
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.graph import rounding, rounding_cost
from pipeline.graph.rounding_cost import check, check_difference, compare
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Answers, Calibration
from pipeline.judging.chest_ct import UNFITTED
from pipeline.network.build import build
from tests.graphs import plain_facts, tiny_card
from tests.pipeline.conftest import small_params

PARAMS = small_params(prepare__image_size=32)
LABELS = np.arange(24) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1), dtype=np.uint8)
CARD = tiny_card()
CALIBRATION = Calibration(scaling=CARD.scaling, thresholds=CARD.thresholds, input_limits=CARD.input_limits)
FACTS = [plain_facts()] * 24


def test_the_cost_is_measured_on_images_that_neither_the_network_nor_the_ranges_saw(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(PARAMS)
    graph = serving_graph(network, PIXELS, LABELS, CALIBRATION, PARAMS, UNFITTED)
    paths.FOLD_MODELS.mkdir(parents=True)
    for fold in range(2):
        network.save(paths.fold_model(fold))
    np.savez(paths.TRUST, probe_weights=np.zeros((2, 1), np.float32), probe_bias=np.full(2, 20, np.float32))
    looked_at: list[tuple[str, list[int]]] = []

    def recorded(name: str, function: Any) -> Any:
        def call(first: Any, pixels: Any, *rest: Any, **more: Any) -> Any:
            looked_at.append((name, [int((image == PIXELS).all(axis=(1, 2, 3)).argmax()) for image in pixels]))
            return function(first, pixels, *rest, **more)

        return call

    monkeypatch.setattr(rounding_cost, "serving_graph", recorded("trained", lambda *_: graph))
    monkeypatch.setattr(rounding, "quantise", recorded("ranges", rounding.quantise))
    answered = recorded("answered", rounding_cost.infer)
    arithmetic: list[bool] = []

    def infer(*parts: Any, bfloat16: bool, **options: Any) -> Scores:
        arithmetic.append(bfloat16)
        scores: Scores = answered(*parts, bfloat16=bfloat16, **options)
        return scores

    monkeypatch.setattr(rounding_cost, "infer", infer)
    params = PARAMS.changed({"export.weights": "int8"})
    figures = rounding_cost.measure(PIXELS, LABELS, np.arange(24) // 12, FACTS, CALIBRATION, params)
    first, second = list(range(12)), list(range(12, 24))
    steps = ("trained", "ranges", "answered", "answered")
    expected = (second, second, first, first, first, first, second, second)
    assert looked_at == list(zip(steps * 2, expected, strict=True))
    assert arithmetic == [False, True, False, True]
    assert figures["agreement"] >= 0.75
    assert figures["accuracy_fall"] == pytest.approx(figures["float32_accuracy"] - figures["served_accuracy"])


def answers(best: list[int], rejected: list[int]) -> Answers:
    """Sure of class `best` of each image."""
    probabilities = np.full((len(best), 4), 0.01)
    probabilities[np.arange(len(best)), best] = 0.97
    reject = np.isin(np.arange(len(best)), rejected)
    return Answers(
        probabilities, ~reject, reject, np.zeros_like(reject), probabilities > 0.5, np.zeros(len(best), bool)
    )


def test_accuracy_agreement_and_decisions_are_compared() -> None:
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    figures = compare(
        answers([0, 1, 2, 3, 0, 1, 2, 3], rejected=[0]), answers([0, 1, 2, 3, 0, 1, 2, 0], rejected=[0, 1]), labels
    )
    assert figures["float32_accuracy"] == 1
    assert figures["accuracy_fall"] == 1 / 8
    assert figures["agreement"] == 7 / 8
    assert figures["same_decision"] == 7 / 8
    assert (figures["float32_rejected"], figures["served_rejected"]) == (1 / 8, 2 / 8)
    assert figures["served_calibration_error"] > figures["float32_calibration_error"]


@pytest.mark.parametrize(
    ("fall", "agreement", "released"), [(0.006, 1, 1), (0, 0.979, 1), (0, 1, 0.979), (float("nan"), 1, 1)]
)
def test_rounding_that_costs_too_much_is_refused(fall: float, agreement: float, released: float) -> None:
    figures = {"float32_accuracy": 0.9, "served_accuracy": 0.9 - fall, "accuracy_fall": fall}
    figures |= {"agreement": agreement, "released_agreement": released}
    for weights, instead in (("int8", r"export\.weights to float16"), ("float16", r"export\.arithmetic to float32")):
        wanted = PARAMS.export.model_copy(update={"weights": weights})
        with pytest.raises(
            StageError, match=rf"{weights} .*out-of-fold accuracy from 0\.9000 to .*{instead}"
        ) as caught:
            check(figures, wanted)
        assert caught.value.exit_code == 3
    check(figures | {"accuracy_fall": 0.005, "agreement": 0.98, "released_agreement": 0.98}, PARAMS.export)


def test_a_difference_above_the_tolerance_is_refused() -> None:
    exact = np.zeros((2, 4), np.float32)
    assert check_difference(exact, exact + np.float32(0.25), 0.25, "logits differ") == 0.25
    for other in (exact + np.float32(0.5), np.full_like(exact, np.nan)):
        with pytest.raises(StageError, match=r"^logits differ by (5\.0e-01|nan), allowed is 2\.5e-01$") as caught:
            check_difference(exact, other, 0.25, "logits differ")
        assert caught.value.exit_code == 3
