"""Shares of slices, and how well they separate cancer from normal, with 95 % intervals by patient.

Slices of one patient are alike, so a hundred slices of three patients say little more than three slices. Each interval
therefore depends on the number of patients and on how much they differ.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t

from chestct.card import Estimate, Probability
from chestct.document import Frozen
from pipeline.judging.metrics import resample, weighted_auc

LOW, HIGH = 0.025, 0.975
"""Ends of an interval, as quantiles."""

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Share(Frozen):
    """`count` of `slices`, which are of `patients` patients, as a share with its interval."""

    count: int
    slices: int
    patients: int
    value: Probability
    low: Probability
    high: Probability

    @classmethod
    def of(cls, hits: Flags, patients: Ints) -> Self | None:
        """The share of N slices for which `hits` [N] is true. `patients` [N] numbers them. None without slices.

        The interval is exact binomial (Clopper-Pearson) with the number of slices that would be worth as much if each
        were of its own patient (Korn and Graubard, 1998). If all slices or none are hits, that is the number of
        patients.
        """
        if not len(hits):
            return None
        count, slices, number = int(hits.sum()), len(hits), len(np.unique(patients))
        value = count / slices
        worth = _worth(hits, patients)
        low = float(beta.ppf(LOW, value * worth, (1 - value) * worth + 1)) if count else 0.0
        high = float(beta.ppf(HIGH, value * worth + 1, (1 - value) * worth)) if count < slices else 1.0
        return cls(count=count, slices=slices, patients=number, value=value, low=low, high=high)

    def __str__(self) -> str:
        """For example `3 of 44 (6.8 %, 1.4 to 18.7)`."""
        return (
            f"{self.count} of {self.slices} ({100 * self.value:.1f} %, {100 * self.low:.1f} to {100 * self.high:.1f})"
        )


def _worth(hits: Flags, patients: Ints) -> float:
    """The number of independent slices that is worth as much as these: from 1 to their number."""
    names, patient_of = np.unique(patients, return_inverse=True)
    slices, number = len(hits), len(names)
    value = hits.mean()
    if number in (1, slices) or value in (0, 1):
        return float(number)
    excess = np.bincount(patient_of, hits - value)  # of each patient's hits over the expected number
    variance = number / (number - 1) * float((excess**2).sum()) / slices**2
    worth = min(float(slices), value * (1 - value) / variance) if variance else float(slices)
    return max(1.0, worth * float(t.ppf(HIGH, slices - 1) / t.ppf(HIGH, number - 1)) ** 2)


def separation(
    scores: NDArray[np.floating], positive: Flags, patients: Ints, *, resamples: int, seed: int
) -> Estimate | None:
    """The share of pairs of a positive and a negative slice that the `scores` [N] order rightly (AUROC); ties are half.

    The interval resamples the patients of each side. With one patient on a side it is 0 to 1, because nothing is known
    about another one. If all pairs are ordered alike, it is the exact binomial one over the patients of the smaller
    side. None if a side has no slices.
    """
    if positive.all() or not positive.any():
        return None
    value = float(weighted_auc(scores, positive, np.ones((1, len(scores))))[0])
    fewest = min(len(np.unique(patients[side])) for side in (positive, ~positive))
    if fewest < 2:
        return Estimate(value=value, low=0, high=1)
    if value in (0, 1):
        reach = LOW ** (1 / fewest)
        return Estimate(value=value, low=reach if value else 0, high=1 if value else 1 - reach)
    weights = np.zeros((resamples, len(scores)))
    for number, side in enumerate((positive, ~positive)):
        weights[:, side] = resample(patients[side], resamples, seed + number)
    low, high = (float(end) for end in np.quantile(weighted_auc(scores, positive, weights), (LOW, HIGH)))
    return Estimate(value=value, low=min(low, value), high=max(high, value))
