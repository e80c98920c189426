import keras
import numpy as np
import pytest

from pipeline.judging.chest_ct import UNFITTED, LinearProbe

PROBE = LinearProbe(np.array([2, -1], np.float32), np.float32(-1))
FEATURES = np.array([[0.5, 0], [1, 0], [0, 1], [500, 0], [-500, 0]], np.float32)
EXPECTED = [0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(2)), 1, 0]


def test_the_probability_is_the_sigmoid_of_the_weighted_features_and_never_overflows():
    found = PROBE(FEATURES)
    assert (found.dtype, found.shape) == (np.float32, (5,))
    assert found == pytest.approx(EXPECTED, abs=1e-6)


def test_the_graph_computes_it_alike():
    assert np.asarray(PROBE(FEATURES, keras.ops)) == pytest.approx(EXPECTED, abs=1e-6)


def test_the_unfitted_probe_takes_every_picture_for_a_chest_ct():
    assert UNFITTED(FEATURES).min() > 0.999
