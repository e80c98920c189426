"""What rounded weights and arithmetic cost, measured on images that the network never saw."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from chestct.engine import Engine, Scores
from chestct.image import Facts
from chestct.store import GRAPH
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Export, Params
from pipeline.graph.rounding import round_weights
from pipeline.graph.to_onnx import serving_graph
from pipeline.images.classes import class_count
from pipeline.judging.calibration import Answers, Calibration, answer
from pipeline.judging.chest_ct import LinearProbe
from pipeline.judging.metrics import Evaluation

COMPARED: Final = ("accuracy", "macro_f1", "calibration_error", "rejected", "referred")
"""Figures of pipeline.judging.metrics that are reported for both graphs."""


def measure(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    facts: Sequence[Facts],
    calibration: Calibration,
    params: Params,
) -> dict[str, float]:
    """Export each fold's network, round it, and compare its answers on its held-out images, as `compare` does."""
    recheck = calibration.thresholds.refer_margin
    probabilities = np.zeros((2, len(labels), class_count()), np.float32)
    ood_scores, chest_ct = np.zeros((2, 2, len(labels)), np.float32)
    with np.load(paths.TRUST) as file:
        probes = [LinearProbe(*each) for each in zip(file["probe_weights"], file["probe_bias"], strict=True)]
    for fold in np.unique(folds):
        held_out = folds == fold
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        exact = serving_graph(network, pixels[~held_out], labels[~held_out], calibration, params, probes[fold])
        served = round_weights(exact, pixels[~held_out], params.export)
        for row, graph, arithmetic in ((0, exact, "float32"), (1, served, params.export.arithmetic)):
            bfloat16 = arithmetic == "bfloat16"
            scores = infer(graph, pixels[held_out], batch_sizes=(1,), bfloat16=bfloat16, recheck=recheck)
            probabilities[row, held_out] = scores.probabilities
            ood_scores[row, held_out], chest_ct[row, held_out] = scores.ood_score, scores.chest_ct
    exact_answers, served_answers = (
        answer(*scores, facts, calibration) for scores in zip(probabilities, ood_scores, chest_ct, strict=True)
    )
    return compare(exact_answers, served_answers, labels)


def infer(model: onnx.ModelProto, pixels: NDArray[np.uint8], **options: Any) -> Scores:
    """Score the images with the service's engine. `options` are those of chestct.engine.Engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        onnx.save(model, path)
        return Engine(path, **options).infer(pixels)


def check_difference(exact: NDArray[np.float32], other: NDArray[np.float32], tolerance: float, what: str) -> float:
    """Return the largest difference. Raise StageError (exit code 3), which begins with `what`, if it is too large."""
    difference = float(np.abs(other - exact).max())
    if not difference <= tolerance:
        raise StageError(f"{what} by {difference:.1e}, allowed is {tolerance:.1e}", 3)
    return difference


def compare(exact: Answers, served: Answers, labels: NDArray[np.int64]) -> dict[str, float]:
    """Compare the answers of the exact graph with those of the served one, on the same N images.

    Returns each of COMPARED as `float32_…` and `served_…`; `accuracy_fall`; `agreement`, the share of equal labels;
    and `same_decision`, the share of equal decisions (accept, refer or reject).
    """
    figures: dict[str, float] = {}
    for name, answers in (("float32", exact), ("served", served)):
        evaluation = Evaluation(answers, labels, resamples=1, seed=0)  # the intervals are not used
        figures |= {f"{name}_{figure}": evaluation.figures[figure].value for figure in COMPARED}
    same = (exact.accepted == served.accepted) & (exact.rejected == served.rejected)
    figures["accuracy_fall"] = figures["float32_accuracy"] - figures["served_accuracy"]
    figures["agreement"] = agreement(exact.probabilities, served.probabilities)
    figures["same_decision"] = float(same.mean())
    return figures


def agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the share of images whose most probable class is the same in both, of probabilities [N, classes]."""
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def check(figures: dict[str, float], wanted: Export) -> None:
    """Raise StageError (exit code 3) if rounding costs more than `wanted` allows."""
    fall, agree = figures["accuracy_fall"], min(figures["agreement"], figures["released_agreement"])
    if not (fall <= wanted.max_accuracy_fall and agree >= wanted.min_agreement):
        instead = "export.weights to float16" if wanted.weights == "int8" else "export.arithmetic to float32"
        raise StageError(
            f"{wanted.weights} weights and {wanted.arithmetic} arithmetic take out-of-fold accuracy from "
            f"{figures['float32_accuracy']:.4f} to {figures['served_accuracy']:.4f} (may fall by "
            f"{wanted.max_accuracy_fall}) and keep {figures['agreement']:.4f} of the labels there, "
            f"{figures['released_agreement']:.4f} in the released network (at least {wanted.min_agreement}); "
            f"set {instead}",
            3,
        )
