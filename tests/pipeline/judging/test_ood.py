"""The distance from the training images, in both ways to measure it."""

import numpy as np
import pytest

from pipeline.judging import ood

RNG = np.random.default_rng(0)
CENTRES = np.array([[4, 0, 0, 1], [0, 4, 0, 1], [0, 0, 4, 1]], np.float32)


def features(count: int, spread: float = 0.3):
    labels = np.arange(count) % 3
    return (CENTRES[labels] + RNG.normal(0, spread, (count, 4))).astype(np.float32), labels


def test_new_images_like_the_training_ones_score_about_one():
    model = ood.fit("mahalanobis", *features(600), 3)
    scores = model(features(600)[0])
    assert 0.6 < np.median(scores) < 1.2


@pytest.mark.parametrize("kind", ["mahalanobis", "neighbours"])
def test_features_between_or_off_the_classes_score_higher_than_any_training_image(kind):
    rows, labels = features(600)
    model = ood.fit(kind, rows, labels, 3)
    off = np.array([[0, 0, 0, 4], [2, 2, 0, 1], [-4, 0, 0, 1]], np.float32)
    assert model(off).min() > model(rows).max()


@pytest.mark.parametrize("kind", ood.KINDS)
def test_the_length_of_the_features_does_not_matter(kind):
    rows, labels = features(60)
    model = ood.fit(kind, rows, labels, 3)
    assert np.allclose(model(rows), model(7 * rows), rtol=1e-3, atol=1e-4)


def test_fewer_images_than_features_still_give_finite_scores():
    rows = RNG.normal(1, 1, (12, 50)).astype(np.float32)
    model = ood.fit("mahalanobis", rows, np.arange(12) % 3, 3)
    assert np.isfinite(model(RNG.normal(1, 1, (5, 50)).astype(np.float32))).all()


def test_with_all_directions_kept_it_is_the_mahalanobis_distance():
    rows, labels = features(600)
    model = ood.fit("mahalanobis", rows, labels, 3)
    unit = ood.unit(rows).astype(np.float64)
    means = np.stack([unit[labels == c].mean(axis=0) for c in range(3)])
    residuals = unit - means[labels]
    # Unit vectors' smallest direction is far below the others, so the shared variance is that direction's own.
    inverse = np.linalg.inv(residuals.T @ residuals / (len(rows) - 3))
    offsets = unit[:, None, :] - means
    exact = np.einsum("ncf,fg,ncg->nc", offsets, inverse, offsets).min(axis=1)
    assert np.allclose(model(rows), np.sqrt(exact / 4), rtol=1e-2)


def test_the_neighbours_score_is_a_cosine_distance():
    rows, labels = features(60)
    similarities = np.sort(ood.unit(rows[:1]) @ ood.unit(rows).T)[0]
    expected = 1 - similarities[-ood.NEIGHBOUR]
    assert ood.fit("neighbours", rows, labels, 3)(rows[:1])[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ood.KINDS)
def test_a_score_is_the_same_in_the_graphs_arithmetic(kind):
    from keras import ops  # only this test pays for TensorFlow

    rows, labels = features(60)
    model = ood.fit(kind, rows, labels, 3)
    assert np.allclose(model(rows), ops.convert_to_numpy(model(ops.convert_to_tensor(rows), ops)), rtol=1e-3, atol=1e-3)
