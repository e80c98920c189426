"""What rounded weights and arithmetic cost, measured on images that the network never saw."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from chestct.engine import Engine
from chestct.image import Facts
from chestct.store import GRAPH
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Export, Params
from pipeline.graph.rounding import round_weights
from pipeline.graph.to_onnx import serving_graph
from pipeline.judging.calibration import Answers, Calibration, answer
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
    bfloat16 = params.export.arithmetic == "bfloat16"
    parts: list[tuple[NDArray[np.int64], Answers, Answers]] = []
    for fold in np.unique(folds):
        held_out = folds == fold
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        exact = serving_graph(network, pixels[~held_out], labels[~held_out], calibration, params)
        rounded = round_weights(exact, pixels[~held_out], params.export)
        held_out_facts = [facts[int(index)] for index in np.flatnonzero(held_out)]
        first, second = (
            _answers(graph, pixels[held_out], held_out_facts, calibration, bfloat16=arithmetic)
            for graph, arithmetic in ((exact, False), (rounded, bfloat16))
        )
        parts.append((labels[held_out], first, second))
    exact_answers, served_answers = (
        Answers(*map(np.concatenate, zip(*(part[which] for part in parts), strict=True))) for which in (1, 2)
    )
    return compare(exact_answers, served_answers, np.concatenate([part[0] for part in parts]))


def _answers(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    facts: Sequence[Facts],
    calibration: Calibration,
    *,
    bfloat16: bool,
) -> Answers:
    """Answer the images as the service does, with its engine."""
    with temporary_graph(model) as path:
        recheck = calibration.thresholds.refer_margin
        scores = Engine(path, batch_sizes=(1,), bfloat16=bfloat16, recheck=recheck).infer(pixels)
    return answer(scores.probabilities, scores.ood_score, facts, calibration)


@contextlib.contextmanager
def temporary_graph(model: onnx.ModelProto) -> Iterator[Path]:
    """The path of a file with the graph, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        onnx.save(model, path)
        yield path


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
