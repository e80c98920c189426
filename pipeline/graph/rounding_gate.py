"""Judges whether answers in a rounded arithmetic are close enough to those in float32.

Both graphs of a fold answer the same pictures, so each picture is compared with itself. The ranges of int8 come from
images that are drawn, so int8 is judged over several draws. A bound holds for the worse end of an interval, which
resamples scans and draws: no single draw decides.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import Estimate
from pipeline.core.params import Export
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import Evaluation, resample

DESCRIBED: Final = ("accuracy", "macro_f1", "loss", "calibration_error", "rejected", "referred", "unfamiliar")
"""Figures of pipeline.judging.metrics that are reported for both graphs."""

_INTERVAL: Final = (2.5, 97.5)
_LEAST_PROBABILITY: Final = 1e-7  # a float32 probability can round to zero; its cross-entropy is infinite

Flags = NDArray[np.bool_]
Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Answered(NamedTuple):
    """What one graph of each fold says about N held-out slices and M other pictures."""

    slices: Answers
    not_chest_ct: Flags
    """[N + M]"""
    unfamiliar: Flags
    """[N + M]"""


def compare(
    exact: Answered, served: Sequence[Answered], labels: Ints, groups: Ints, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Compare what the exact graphs say with what each draw of the rounded ones says.

    `labels` [N] are the true classes. `groups` [N + M] are resampled as wholes: the scan of a picture, or a number of
    its own. Returns means over pictures and draws, each with its 95 % interval:

    - `agreement` and `same_decision`: share of the slices that keep their label, and their decision
    - `same_not_chest_ct` and `same_unfamiliar`: share of all pictures that stay refused, or stay not refused
    - `accuracy_fall`, and `loss_rise` in nats
    """
    best, loss = exact.slices.probabilities.argmax(axis=1), _loss(exact.slices, labels)
    rounded = [each.slices.probabilities.argmax(axis=1) for each in served]
    draws: dict[str, list[NDArray[np.generic]]] = {
        "agreement": [one == best for one in rounded],
        "same_decision": [same_decision(exact.slices, each.slices) for each in served],
        "same_not_chest_ct": [each.not_chest_ct == exact.not_chest_ct for each in served],
        "same_unfamiliar": [each.unfamiliar == exact.unfamiliar for each in served],
        "accuracy_fall": [(best == labels).astype(float) - (one == labels) for one in rounded],
        "loss_rise": [_loss(each.slices, labels) - loss for each in served],
    }
    return {
        name: _estimate(np.stack(values).astype(float), groups[: len(values[0])], resamples, seed)
        for name, values in draws.items()
    }


def describe(exact: Answers, served: Sequence[Answers], labels: Ints) -> dict[str, float]:
    """Each of DESCRIBED as `float32_…`, and as `served_…`, which is the mean over the draws."""
    sides = [Evaluation(each, labels, resamples=1, seed=0).figures for each in (exact, *served)]  # no intervals
    first, *draws = ({name: figures[name].value for name in DESCRIBED} for figures in sides)
    means = {f"served_{name}": float(np.mean([draw[name] for draw in draws])) for name in DESCRIBED}
    return {f"float32_{name}": value for name, value in first.items()} | means


def agreement(first: Floats, second: Floats) -> float:
    """Return the share of images whose most probable class is the same in both, of probabilities [N, classes]."""
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def find_missed(figures: Mapping[str, Estimate], released: Mapping[str, float], wanted: Export) -> list[str]:
    """Say in words which bounds of `wanted` rounding may miss.

    `released` are the shares of labels and decisions that the released network keeps.
    """
    least = {"agreement": wanted.min_agreement}
    least |= dict.fromkeys(("same_decision", "same_not_chest_ct", "same_unfamiliar"), wanted.min_same_decision)
    most = {"accuracy_fall": wanted.max_accuracy_fall, "loss_rise": wanted.max_loss_rise}
    missed = [
        f"{name} may be as low as {figures[name].low:.4f} (at least {bound})"
        for name, bound in least.items()
        if figures[name].low < bound
    ]
    missed += [
        f"{name} may be as high as {figures[name].high:.4f} (at most {bound})"
        for name, bound in most.items()
        if figures[name].high > bound
    ]
    for what, bound in {"agreement": wanted.min_agreement, "same_decision": wanted.min_same_decision}.items():
        name = f"released_{what}"
        if released[name] < bound:
            missed.append(f"{name} is {released[name]:.4f} (at least {bound})")
    return missed


def _loss(answers: Answers, labels: Ints) -> Floats:
    """Cross-entropy of each image in nats, [N]."""
    true = answers.probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(true, _LEAST_PROBABILITY)))


def same_decision(first: Answers, second: Answers) -> Flags:
    """Which slices [N] have the same decision in both."""
    return np.asarray((first.accepted == second.accepted) & (first.rejected == second.rejected))


def _estimate(values: Floats, groups: Ints, resamples: int, seed: int) -> Estimate:
    """The mean of `values` [draws, N], and its interval by resampling `groups` [N] and draws.

    What is the same everywhere does not vary over resamples. Its interval is then the exact binomial one over the
    images, because rounding moves each image by itself.
    """
    weights = resample(groups, resamples, seed)
    of_draws = resample(np.arange(len(values)), resamples, seed + 1)
    by_draw = weights @ values.T / weights.sum(axis=1, keepdims=True)
    low, high = np.percentile((by_draw * of_draws).sum(axis=1) / len(values), _INTERVAL)
    mean, count = float(values.mean()), values.shape[1]
    if mean == 1 == values.min():
        low = ((100 - _INTERVAL[1]) / 100) ** (1 / count)
    return Estimate(value=mean, low=min(float(low), mean), high=max(float(high), mean))
