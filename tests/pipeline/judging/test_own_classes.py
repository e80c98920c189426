"""Scaling, thresholds and figures of two classes, and of ten."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.core.params import Params
from pipeline.images.classes import CLASSES, NORMAL, TITLES, Classes, use_classes
from pipeline.judging.calibration import METHODS, Scored, cross_fit, cross_fitted_loss
from pipeline.judging.metrics import Evaluation
from tests.graphs import plain_facts
from tests.server import ROOT

FACTS = plain_facts()


@pytest.fixture(params=[2, 10])
def count(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of classes that the process uses until the test ends. The last one is normal."""
    names = tuple(f"class_{number}" for number in range(request.param))
    use_classes(Classes(names=names, normal=names[-1], titles={}))
    yield request.param
    use_classes(Classes(names=CLASSES, normal=NORMAL, titles=TITLES))


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_of_other_classes_is_measured(count: int, method: str) -> None:
    rng = np.random.default_rng(count)
    logits = rng.normal(0, 2, (400, count))
    labels = (rng.random((400, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    scored = Scored(logits, rng.gamma(4, 1, 400), rng.uniform(0.9, 1, 400), labels, [FACTS] * 400)
    folds = np.arange(400) % 4
    wanted = Params.read(ROOT / "params.yaml").evaluate
    names = tuple(f"class_{number}" for number in range(count))
    use_classes(Classes(names=names, normal=names[-1], titles={}))  # Params.read took those of the file
    assert np.isfinite(cross_fitted_loss(scored, folds, method))
    answers = cross_fit(scored, folds, wanted, method)
    metrics = Evaluation(answers, labels, resamples=20, seed=1).metrics("drawn")
    assert list(metrics.classes) == list(names)
    assert np.sum(metrics.confusion) == 400
    assert metrics.accuracy.value == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=0.05)
    assert 1 <= metrics.set_size.value <= count
    assert metrics.cancer_auc.value > 0.7
