"""Baselines: simple ways to answer, measured on the same folds as the network to put its figures into context."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chestct.card import Estimate
from chestct.image import Facts
from pipeline.images.classes import CLASSES
from pipeline.images.input_facts import log_geometry
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import Evaluation

THUMBNAIL: Final = 32
"""Largest height and width of the pictures that are compared pixel by pixel."""

Ints = NDArray[np.int64]


def predict(
    pixels: NDArray[np.uint8],
    facts: Sequence[Facts],
    features: NDArray[np.float32],
    labels: Ints,
    folds: Ints,
) -> dict[str, Ints]:
    """Each baseline's labels [N]. Each fold is predicted by a model that was fitted on the other folds.

    `pixels` [N, S, S, 1], N `facts` of the files, `features` [N, F] of the pretrained backbone.
    """
    step = max(1, pixels.shape[1] // THUMBNAIL)
    thumbnails = pixels[:, ::step, ::step, 0].reshape(len(pixels), -1).astype(np.float32)
    held_out = PredefinedSplit(folds)
    return {
        "majority_class": cross_val_predict(DummyClassifier(), thumbnails, labels, cv=held_out),
        "geometry_alone": cross_val_predict(_logistic(), log_geometry(facts), labels, cv=held_out),
        "nearest_pixels": cross_val_predict(KNeighborsClassifier(1), thumbnails, labels, cv=held_out),
        "frozen_features": cross_val_predict(_logistic(), features, labels, cv=held_out),
    }


def measure(predicted: Ints, labels: Ints, scans: Ints, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Accuracy and macro F1 of a baseline's labels [N], with intervals from resampling whole scans."""
    certain = np.eye(len(CLASSES))[predicted]
    every = np.ones(len(labels), bool)
    answers = Answers(certain, every, ~every, ~every, certain > 0, ~every)
    figures = Evaluation(answers, labels, groups=scans, resamples=resamples, seed=seed).figures
    return {name: figures[name] for name in ("accuracy", "macro_f1")}


def _logistic() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
