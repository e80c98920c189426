"""int8 and bfloat16 on a small network: what is rounded, what that costs and when it is refused."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from chestct.engine import Engine
from pipeline import export
from pipeline.base_model import build
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.graph import rounding
from pipeline.judging.calibration import Answers, Calibration
from tests.graphs import plain_facts, tiny_card

PARAMS = Params.read(Path(__file__).parents[3] / "params.yaml")
SMALL = PARAMS.model_copy(
    update={
        "prepare": PARAMS.prepare.model_copy(update={"image_size": 32}),
        "base_model": PARAMS.base_model.model_copy(update={"backbone": "small", "weights": "none"}),
    }
)
LABELS = np.arange(24) % 4
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 1), dtype=np.uint8)
CARD = tiny_card()
CALIBRATION = Calibration(scaling=CARD.scaling, thresholds=CARD.thresholds, input_limits=CARD.input_limits)
FACTS = [plain_facts()] * 24


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build(SMALL)


@pytest.fixture(scope="module")
def graphs(network: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """float32 and int8."""
    folder = tmp_path_factory.mktemp("graphs")
    exact = export.trained_graph(network, PIXELS, LABELS, CALIBRATION, SMALL)
    onnx.save(exact, folder / "float32.onnx")
    onnx.save(rounding.quantise(exact, PIXELS), folder / "int8.onnx")
    return folder / "float32.onnx", folder / "int8.onnx"


def test_int8_computes_nearly_the_same_from_a_quarter_of_the_bytes(graphs: tuple[Path, Path]) -> None:
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


def test_the_int8_graph_is_one_file_that_onnx_runtime_answers_with_too(graphs: tuple[Path, Path]) -> None:
    _, path = graphs
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, session.run(None, {"pixels": PIXELS}), strict=True))
    ours = Engine(path, batch_sizes=(8,)).infer(PIXELS)
    assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=0.02)
    assert theirs["heatmaps"] == pytest.approx(ours.heatmaps, abs=0.05 * float(np.abs(ours.heatmaps).max()))


def test_its_cost_is_measured_on_images_that_the_networks_and_ranges_have_not_seen(
    network: keras.Model, graphs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.FOLD_MODELS.mkdir(parents=True)
    for fold in range(2):
        network.save(paths.fold_model(fold))
    looked_at: list[tuple[str, list[int]]] = []

    def recorded(name: str, function: Any) -> Any:
        def call(first: Any, pixels: Any, *rest: Any, **more: Any) -> Any:
            looked_at.append((name, [int((image == PIXELS).all(axis=(1, 2, 3)).argmax()) for image in pixels]))
            return function(first, pixels, *rest, **more)

        return call

    monkeypatch.setattr(export, "trained_graph", recorded("trained", lambda *_: onnx.load(graphs[0])))
    monkeypatch.setattr(rounding, "quantise", recorded("ranges", rounding.quantise))
    answered = recorded("answered", export._answers)
    arithmetic: list[bool] = []

    def answers_with(*parts: Any, bfloat16: bool) -> Answers:
        arithmetic.append(bfloat16)
        answers: Answers = answered(*parts, bfloat16=bfloat16)
        return answers

    monkeypatch.setattr(export, "_answers", answers_with)
    params = SMALL.model_copy(update={"export": SMALL.export.model_copy(update={"weights": "int8"})})
    figures = export.measure_rounding(PIXELS, LABELS, np.arange(24) // 12, FACTS, CALIBRATION, params)
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
    return Answers(probabilities, ~reject, reject, probabilities > 0.5, np.zeros(len(best), bool))


def test_accuracy_agreement_and_decisions_are_compared() -> None:
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    figures = rounding.compare(
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
def test_what_costs_too_much_is_refused_with_its_figures(fall: float, agreement: float, released: float) -> None:
    figures = {"float32_accuracy": 0.9, "served_accuracy": 0.9 - fall, "accuracy_fall": fall}
    figures |= {"agreement": agreement, "released_agreement": released}
    for weights, instead in (("int8", r"export\.weights to float16"), ("float16", r"export\.arithmetic to float32")):
        wanted = PARAMS.export.model_copy(update={"weights": weights})
        with pytest.raises(
            StageError, match=rf"{weights} .*out-of-fold accuracy from 0\.9000 to .*{instead}"
        ) as caught:
            rounding.check(figures, wanted)
        assert caught.value.exit_code == 3
    rounding.check(figures | {"accuracy_fall": 0.005, "agreement": 0.98, "released_agreement": 0.98}, PARAMS.export)


def test_ranges_come_from_images_spread_over_all() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    assert rounding.spread(images, 5).ravel().tolist() == [0, 24, 49, 74, 99]
    assert len(rounding.spread(images, 200)) == 100
