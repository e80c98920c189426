"""What a rounded arithmetic costs, measured on pictures that the network never saw."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from chestct.arithmetic import Arithmetic, CloseCalls
from chestct.card import Estimate
from chestct.engine import Engine, Scores
from chestct.image import Facts
from chestct.store import GRAPH
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.graph.rounding import measure_ranges, round_weights, spread
from pipeline.graph.rounding_gate import Answered, agreement, compare, describe, same_decision
from pipeline.graph.to_onnx import serving_graph
from pipeline.images import input_facts
from pipeline.images.classes import class_count
from pipeline.judging.calibration import Calibration, answer
from pipeline.judging.chest_ct import LinearProbe
from pipeline.judging.probe_pictures import ProbePictures

OTHERS: Final = 256
"""Most of the probe's pictures on which the two refusals are compared."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Slices(NamedTuple):
    """The N slices of the pool."""

    pixels: NDArray[np.uint8]
    """[N, S, S, 1]"""
    labels: Ints
    folds: Ints
    """[N], the fold that holds the slice out."""
    scans: Ints
    facts: Sequence[Facts]

    @classmethod
    def load(cls) -> "Slices":
        """Read POOL and FACTS."""
        with np.load(paths.POOL) as pool, np.load(paths.FACTS) as measured:
            names = ("pixels", "labels", "folds", "scans")
            return cls(**{name: pool[name] for name in names}, facts=input_facts.from_arrays(measured))


class Asked(NamedTuple):
    """N slices and then M other pictures, each of which the network of one fold answers."""

    pixels: NDArray[np.uint8]
    folds: Ints
    groups: Ints
    """The scan of a picture, or a number of its own."""


def measure(
    slices: Slices, others: ProbePictures, calibration: Calibration, params: Params, arithmetics: Sequence[Arithmetic]
) -> dict[Arithmetic, tuple[dict[str, Estimate], dict[str, float]]]:
    """Export each fold's network, and compare what it says about held-out slices and `others`, exact and rounded.

    int8 is drawn `export.draws` times. Returns what `compare` and `describe` of rounding_gate return, by arithmetic.
    """
    asked = hold_out(slices, others)
    drawn = [each for each in arithmetics for _ in range(params.export.draws if each == "int8" else 1)]
    probabilities = np.zeros((1 + len(drawn), len(asked.folds), class_count()), np.float32)
    ood_scores, chest_ct = np.zeros((2, 1 + len(drawn), len(asked.folds)), np.float32)
    close_calls = close_calls_of(params, calibration)
    with np.load(paths.TRUST) as file:
        probes = [LinearProbe(*each) for each in zip(file["probe_weights"], file["probe_bias"], strict=True)]
    for fold in np.unique(slices.folds):
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        training, held_out = slices.folds != fold, asked.folds == fold
        images, labels = slices.pixels[training], slices.labels[training]
        exact = serving_graph(network, images, labels, calibration, params, probes[fold])
        served: list[dict[str, Any]] = [{"arithmetic": each, "close_calls": close_calls} for each in drawn]
        for draw, options in enumerate(each for each in served if each["arithmetic"] == "int8"):
            options["ranges"] = measure_ranges(exact, images, params.export, draw)
        rounded = round_weights(exact, params.export)
        for row, (graph, options) in enumerate([(exact, {}), *((rounded, options) for options in served)]):
            scores = infer(graph, asked.pixels[held_out], batch_sizes=(1,), **options)
            probabilities[row, held_out] = scores.probabilities
            ood_scores[row, held_out], chest_ct[row, held_out] = scores.ood_score, scores.chest_ct
    first, *answered = (
        _answered(*scores, slices.facts, calibration)
        for scores in zip(probabilities, ood_scores, chest_ct, strict=True)
    )
    found = {}
    for arithmetic in arithmetics:
        own = [each for each, its in zip(answered, drawn, strict=True) if its == arithmetic]
        figures = compare(first, own, slices.labels, asked.groups, params.export.bootstrap, params.seed)
        found[arithmetic] = figures, describe(first.slices, [each.slices for each in own], slices.labels)
    return found


def close_calls_of(params: Params, calibration: Calibration) -> CloseCalls:
    """What the service will compute again in float32."""
    wanted, limits = params.export, calibration.thresholds
    return CloseCalls(max(wanted.close_call, limits.refer_margin), wanted.close_limit, limits.least_confidence)


def hold_out(slices: Slices, others: ProbePictures) -> Asked:
    """Add OTHERS of the other pictures to the slices.

    A picture that is made from a slice is held out with it. The rest are spread over the folds.
    """
    pixels, rows = spread(others.pixels, OTHERS), spread(others.rows, OTHERS)
    made, numbers = rows >= 0, np.arange(len(rows))
    names = np.unique(slices.folds)
    folds = np.where(made, slices.folds[rows], names[numbers % len(names)])
    groups = np.where(made, slices.scans[rows], -1 - numbers)
    return Asked(
        np.concatenate([slices.pixels, pixels]),
        np.concatenate([slices.folds, folds]),
        np.concatenate([slices.scans, groups]),
    )


def infer(model: onnx.ModelProto, pixels: NDArray[np.uint8], **options: Any) -> Scores:
    """Score the images with the service's engine. `options` are those of chestct.engine.Engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        onnx.save(model, path)
        return Engine(path, **options).infer(pixels)


def compare_released(
    exact: Scores, served: Scores, facts: Sequence[Facts], calibration: Calibration
) -> dict[str, float]:
    """Return the shares of slices that keep label and decision, of the released network, which has learned from them.

    It is surer of them than the folds' networks, so more of them are near the limit of what is accepted.
    """
    first, other = (
        answer(each.probabilities, each.ood_score, each.chest_ct, facts, calibration) for each in (exact, served)
    )
    return {
        "released_agreement": agreement(exact.probabilities, served.probabilities),
        "released_same_decision": float(same_decision(first, other).mean()),
    }


def check_difference(exact: Floats, other: Floats, tolerance: float, what: str) -> float:
    """Return the largest difference. Raise StageError (exit code 3), which begins with `what`, if it is too large."""
    difference = float(np.abs(other - exact).max())
    if not difference <= tolerance:
        raise StageError(f"{what} by {difference:.1e}, allowed is {tolerance:.1e}", 3)
    return difference


def _answered(
    probabilities: Floats, ood_scores: Floats, chest_ct: Floats, facts: Sequence[Facts], calibration: Calibration
) -> Answered:
    """What the service would say about N + M pictures. Only the slices, which come first, have `facts`."""
    count, limits = len(facts), calibration.thresholds
    return Answered(
        answer(probabilities[:count], ood_scores[:count], chest_ct[:count], facts, calibration),
        not_chest_ct=chest_ct < limits.chest_ct_limit,
        unfamiliar=ood_scores > limits.ood_limit,
    )
