"""Baselines: simple ways to answer, measured on the same folds as the network to put its figures into context."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chestct.card import Estimate
from chestct.image import Facts
from pipeline.images.classes import class_count
from pipeline.images.input_facts import log_geometry
from pipeline.images.thumbnails import thumbnails
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import Evaluation

Ints = NDArray[np.int64]


def predict(
    pixels: NDArray[np.uint8],
    facts: Sequence[Facts],
    features: NDArray[np.float32],
    labels: Ints,
    folds: Ints,
) -> dict[str, Ints]:
    """Each baseline's labels [N]. Each fold is predicted by a model that was fitted on the other folds.

    `pixels` uint8 [N, S, S, 1] are the standard pictures, N `facts` those of their files, and `features` [N, F] those
    of the network before training.
    """
    held_out = PredefinedSplit(folds)
    return {
        "majority_class": cross_val_predict(DummyClassifier(), features, labels, cv=held_out),
        "style_alone": cross_val_predict(_logistic(), style(facts), labels, cv=held_out),
        "nearest_picture": nearest_label(thumbnails(pixels), labels, folds),
        "frozen_features": cross_val_predict(_logistic(), features, labels, cv=held_out),
    }


def style(facts: Sequence[Facts]) -> NDArray[np.float64]:
    """What N files look like without a look at the lung, [N, 7].

    The logarithms of width, height and aspect; the grey levels of soft tissue and air; the share of the outer eighth
    that is a flat frame, and the share of the picture that the body fills, which tells of a border or a table.
    """
    levels = [[each.tissue, each.air, each.frame, each.body] for each in facts]
    return np.hstack([log_geometry(facts), levels])


def nearest_label(vectors: NDArray[np.float32], labels: Ints, folds: Ints) -> Ints:
    """For each image, the label of the image in another fold that correlates with it most.

    `vectors` float32 [N, P] have length 1, `labels` and `folds` [N].
    """
    correlations = vectors @ vectors.T
    correlations[folds[:, np.newaxis] == folds] = -np.inf
    return np.asarray(labels[correlations.argmax(axis=1)])


def measure(predicted: Ints, labels: Ints, scans: Ints, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Accuracy and macro F1 of a baseline's labels [N], with intervals from resampling whole scans."""
    certain = np.eye(class_count())[predicted]
    every = np.ones(len(labels), bool)
    answers = Answers(certain, every, ~every, ~every, certain > 0, ~every)
    figures = Evaluation(answers, labels, groups=scans, resamples=resamples, seed=seed).figures
    return {name: figures[name] for name in ("accuracy", "macro_f1")}


def _logistic() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
