"""Paired differences of the variants, and a graph for another size of input."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import engines
from benchmarks.engines import Answers, Variant
from load_tests.verdict import LoadError
from tests.graphs import tiny_card, tiny_graph

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


def test_without_the_folds_networks_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=r"expected .*pool.npz.*make train"):
        engines.answer_held_out(tmp_path)
