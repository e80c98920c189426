"""Paired differences of the variants, and a graph for another size of input."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks import engines
from benchmarks.engine_variants import Variant, variants
from benchmarks.engines import Answers
from chestct.arithmetic import ARITHMETICS
from chestct.engine import has_instructions
from load_tests.verdict import LoadError
from pipeline.core.params import Params
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import UNFITTED
from pipeline.network.build import build
from tests.graphs import tiny_card, tiny_graph
from tests.pipeline.conftest import small_params
from tests.server import ROOT

EXACT, FASTER = Variant("OpenVINO", "float32", 256), Variant("OpenVINO", "bfloat16", 256)


def test_differences_are_paired_with_the_first_variant_and_resampled_by_scan() -> None:
    labels = np.arange(40) % 4
    worse = labels.copy()
    worse[:4] = (labels[:4] + 1) % 4
    found = engines.accuracies(Answers(labels, np.arange(40) // 4, {EXACT: labels, FASTER: worse}))
    assert found[EXACT] == (1, 0, 0, 0)
    accuracy, difference, low, high = found[FASTER]
    assert (accuracy, difference) == (pytest.approx(0.9), pytest.approx(-10))
    assert low <= -20, "all four errors are of one scan of ten, which is drawn twice or more"
    assert high == 0, "or never"


def test_a_graph_takes_another_size_of_input(tmp_path: Path) -> None:
    size = tiny_card().input.height
    graph = tiny_graph(tmp_path / "model.onnx")
    assert engines._of_size(graph, size) == graph
    larger = engines._of_size(graph, 2 * size)
    dimensions = onnx.load(larger).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in dimensions[1:]] == [2 * size, 2 * size, 1]


def test_an_exported_network_answers_at_another_size(tmp_path: Path) -> None:
    params = small_params(prepare__image_size=64)
    card, pixels = tiny_card(), np.random.default_rng(0).integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
    calibration = Calibration(scaling=card.scaling, thresholds=card.thresholds, input_limits=card.input_limits)
    exact = serving_graph(build(params), pixels, np.arange(24) % 4, calibration, params, UNFITTED)
    onnx.save(exact, tmp_path / "float32.onnx")
    run = Variant("OpenVINO", "float32", 32).compile(engines._of_size(tmp_path / "float32.onnx", 32), 1, {})
    assert run(np.full((1, 32, 32, 1), 99, np.uint8)).sum() == pytest.approx(1, abs=1e-5)


def test_without_the_folds_networks_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=r"expected .*pool.npz.*make train"):
        engines.answer_held_out(tmp_path)


def test_the_served_variant_is_that_of_the_parameters() -> None:
    params = Params.read(ROOT / "params.yaml")
    size = params.prepare.image_size
    for arithmetic in ARITHMETICS:
        chosen = engines.served(params.changed({"export.arithmetic": arithmetic}))
        assert chosen == Variant("OpenVINO", arithmetic, size)
        assert (chosen in variants(size)) == has_instructions(arithmetic)


def test_the_picture_has_a_ring_around_the_served_variant(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    answers = Answers(labels, np.arange(40) // 4, {EXACT: labels, FASTER: labels})
    rates = {(variant, batch): 100.0 for variant in (EXACT, FASTER) for batch in engines.BATCHES}
    elsewhere = Variant("OpenVINO", "bfloat16", 1)
    dark = []
    for chosen in (FASTER, elsewhere):
        engines.draw(answers, rates, chosen, tmp_path / "engines.png")
        dark.append(np.count_nonzero(np.asarray(Image.open(tmp_path / "engines.png").convert("L")) < 32))
    assert dark[0] > dark[1] + 30, "the ring is black"
