"""The probe "is it a chest CT": its probability, its graph and its fit."""

import keras
import numpy as np
import pytest

from pipeline.judging.chest_ct import UNFITTED, LinearProbe, fit

PROBE = LinearProbe(np.array([2, -1], np.float32), np.float32(-1))
SUMMARIES = np.array([[0.5, 0], [1, 0], [0, 1], [500, 0], [-500, 0]], np.float32)
EXPECTED = [0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(2)), 1, 0]


def test_the_probability_is_the_sigmoid_of_the_weighted_summary_and_never_overflows():
    found = PROBE(SUMMARIES)
    assert (found.dtype, found.shape) == (np.float32, (5,))
    assert found == pytest.approx(EXPECTED, abs=1e-6)


def test_the_graph_computes_it_alike():
    assert np.asarray(PROBE(SUMMARIES, keras.ops)) == pytest.approx(EXPECTED, abs=1e-6)


def test_the_unfitted_probe_takes_every_picture_for_a_chest_ct():
    assert UNFITTED(SUMMARIES).min() > 0.999


def test_the_fitted_probe_tells_both_sides_apart_and_a_small_kind_counts_too():
    rng = np.random.default_rng(0)
    summaries = rng.normal(0, 0.1, (400, 3)).astype(np.float32)
    kinds = np.repeat(["slices", "photographs", "heads"], [200, 196, 4])
    summaries[:200, 0] += 1
    summaries[396:, 1] += 1  # heads differ from photographs, and have as much of the first as half a slice
    summaries[396:, 0] += 0.5
    probe = fit(summaries, kinds == "slices", kinds)
    found = probe(summaries)
    assert (probe.weights.dtype, probe.weights.shape) == (np.float32, (3,))
    assert found[:200].min() > 0.5 > found[200:].max()
    assert probe(np.array([[0.5, 0, 0]], np.float32)) == pytest.approx(0.5, abs=0.25)
