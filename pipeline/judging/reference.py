"""What train and valid are like: the reference that later images are compared with (pipeline.judging.drift)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from chestct.card import FactReference, Reference
from chestct.watched import EDGES, Scores, count, measure
from pipeline.judging.calibration import Calibration, Scored


def measure_reference(scored: Scored, calibration: Calibration, scans: NDArray[np.int64]) -> Reference:
    """Count the watched facts of N images, which networks scored that were not trained on them.

    `scans` [N] numbers the scan of each image.
    """
    probabilities = softmax(calibration.scaling.apply(scored.logits), axis=1)
    limit = calibration.thresholds.ood_limit
    rows = [
        measure(facts, Scores(row, float(score), limit, float(chest)))
        for facts, row, score, chest in zip(
            scored.facts, probabilities, scored.ood_scores, scored.chest_ct, strict=True
        )
    ]
    return count_reference({name: np.array([row[name] for row in rows]) for name in EDGES}, scans)


def count_reference(values: dict[str, NDArray[np.floating]], scans: NDArray[np.int64]) -> Reference:
    """The reference of the watched facts `values`, each [N], of images of the `scans` [N]."""
    same = (scans[:, np.newaxis] == scans) & ~np.eye(len(scans), dtype=bool)
    return Reference(
        images=len(scans),
        same_scan=probability_of_pair(scans),
        facts={name: _count_fact(name, each, same) for name, each in values.items()},
    )


def probability_of_pair(groups: NDArray[np.int64]) -> float:
    """Probability that two of the images are of one group; `groups` [N]. 0 for one image."""
    sizes = np.unique(groups, return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / max(1, len(groups) * (len(groups) - 1)))


def _count_fact(name: str, values: NDArray[np.floating], same: NDArray[np.bool_]) -> FactReference:
    """The reference of one fact; `same` [N, N] tells which different images are of one scan."""
    shares = count(name, values) / len(values)
    bins = np.searchsorted(EDGES[name], values, side="left")
    by_chance = float(np.square(shares).sum())
    agree = float((bins[:, np.newaxis] == bins)[same].mean()) if same.any() else by_chance
    clumping = 0.0 if by_chance == 1 else max(0.0, (agree - by_chance) / (1 - by_chance))
    return FactReference(
        edges=EDGES[name],
        shares=tuple(round(float(share), 6) for share in shares),
        clumping=round(clumping, 4),
    )
