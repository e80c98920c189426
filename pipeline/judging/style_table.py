"""What becomes of the answers if held-out slices are shown in other styles (pipeline.judging.styles)."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from chestct.card import Estimate
from pipeline.images import input_facts
from pipeline.images.classes import normal_index
from pipeline.judging.calibration import Calibration, answer
from pipeline.judging.ood import Kind
from pipeline.judging.shares import Share

FIGURES: Final = ("kept", "kept_normal_or_cancer", "kept_or_unfamiliar", "accepted_otherwise", "unfamiliar", "rejected")


def measure(
    styles: Mapping[str, NDArray[Any]],
    labels_before: NDArray[np.int64],
    serving: Kind,
    calibration: Calibration,
    scans: NDArray[np.int64],
) -> dict[str, dict[str, Estimate]]:
    """For each style in the arrays of STYLES, the share of N slices for each of FIGURES, with its interval by scan.

    `labels_before` [N] are the most probable classes of the slices as they came, `scans` [N] their scans. `kept`: the
    most probable class is the same, whatever the decision. `kept_normal_or_cancer`: it is on the same side.
    `accepted_otherwise`: accepted with another label, which is the dangerous case.
    """
    shape = styles["logits"].shape[:2]
    facts = input_facts.from_arrays(styles)
    table = {}
    for index, style in enumerate(styles["styles"].tolist()):
        probabilities = softmax(calibration.scaling.apply(styles["logits"][index].astype(np.float64)), axis=1)
        scores = styles[f"ood_{serving}"][index]
        shown = facts[index * shape[1] : (index + 1) * shape[1]]
        answers = answer(probabilities, scores, styles["chest_ct"][index], shown, calibration)
        after = probabilities.argmax(axis=1)
        kept = after == labels_before
        side_kept = (after == normal_index()) == (labels_before == normal_index())
        shares = (
            kept,
            side_kept,
            kept | answers.unfamiliar,
            answers.accepted & ~kept,
            answers.unfamiliar,
            answers.rejected,
        )
        table[style] = {name: _estimate(share, scans) for name, share in zip(FIGURES, shares, strict=True)}
    return table


def _estimate(hits: NDArray[np.bool_], scans: NDArray[np.int64]) -> Estimate:
    share = Share.of(hits, scans)
    assert share is not None, "there are images"
    return Estimate(value=share.value, low=share.low, high=share.high)
