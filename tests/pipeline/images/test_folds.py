"""Folds keep scans whole and classes balanced."""

import numpy as np

from pipeline.images.folds import make_folds


def test_folds_keep_scans_whole_and_classes_balanced() -> None:
    rng = np.random.default_rng(3)
    scans = rng.integers(0, 60, 300)
    labels = scans % 4
    folds = make_folds(labels, scans, 3, seed=7)
    assert all(len(np.unique(folds[scans == index])) == 1 for index in np.unique(scans))
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=3)
        assert counts.min() >= 0.5 * counts.max()
    assert np.array_equal(folds, make_folds(labels, scans, 3, seed=7))
    assert not np.array_equal(folds, make_folds(labels, scans, 3, seed=8))
