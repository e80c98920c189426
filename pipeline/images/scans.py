"""Groups slices by the patient's scan, because slices of one scan must never be on both sides of a split.

The files of the public data set were grouped once by looking at them: scans.json. Other images get the automatic rule:
they belong to the scan of the image that they correlate with most, if they do by `prepare.scan_correlation` or more.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chestct.document import Frozen
from pipeline.images.slices import Slice

CURATED: Final = Path(__file__).with_name("scans.json")
BOUNDS: Final = (0.86, 0.87, 0.88, 0.89, 0.90, 0.91, 0.92, 0.93, 0.94)
"""Correlations that `compare_bounds` tries."""


class Curated(Frozen):
    """scans.json: files that were grouped by looking at them."""

    rule: str
    """How they were grouped."""
    correlation: float
    """The lowest thumbnail correlation in the groups that were looked at first."""
    looked_at: date
    without_lung: frozenset[str]
    """SHA-256 of the files that show no lung although `lung_share` finds some: fat in a narrow window."""
    scans: dict[str, str]
    """The scan of each file, by the SHA-256 of its bytes."""

    @classmethod
    def read(cls) -> "Curated":
        return cls.model_validate_json(CURATED.read_bytes())


def number_scans(slices: Sequence[Slice], curated: Curated, correlation: float) -> list[Slice]:
    """The slices with their scans, numbered from 0. Test images do not change the scans of the others."""
    if not slices:
        return []
    names = [curated.scans.get(item.file.sha256) for item in slices]
    number = {name: index for index, name in enumerate(sorted({name for name in names if name}))}
    scans = np.array([number[name] if name else -1 for name in names], np.int64)
    correlations = _correlate(slices)
    known = np.array([item.file.split != "test" for item in slices])
    scans[known] = join(correlations[np.ix_(known, known)], scans[known], correlation)
    _, numbers = np.unique(join(correlations, scans, correlation), return_inverse=True)
    return [item._replace(scan=int(scan)) for item, scan in zip(slices, numbers, strict=True)]


def join(correlations: NDArray[np.float32], given: NDArray[np.int64], least: float) -> NDArray[np.int64]:
    """Join images that correlate by `least` or more, the strongest links first.

    `correlations` float32 [N, N]; `given` int64 [N] are the scans known beforehand, -1 for none. Two of these are never
    joined, so a link between them is left out. Returns int64 [N], the scans known beforehand unchanged.
    """
    last = given.max(initial=-1)
    scans = np.where(given >= 0, given, last + 1 + np.arange(len(given)))
    rows, columns = np.nonzero(np.triu(correlations >= least, 1))
    for link in np.argsort(-correlations[rows, columns], kind="stable"):
        kept, other = sorted((scans[rows[link]], scans[columns[link]]))
        if kept != other and other > last:
            scans[scans == other] = kept
    return np.asarray(scans, np.int64)


def compare_bounds(pool: Sequence[Slice]) -> list[dict[str, Any]]:
    """What the automatic rule alone would make of the distinct images of train and valid, for each of BOUNDS.

    Of the pairs that correlate by the bound or more, `one_label` and `one_scan` are the shares with one label and of
    one scan (1 if there is no pair). `scans_divided` counts the scans that are in several groups.
    """
    correlations = _correlate(pool)
    labels, scans = (np.array(each) for each in zip(*((item.label, item.scan) for item in pool), strict=True))
    found = []
    for bound in BOUNDS:
        groups = join(correlations, np.full(len(pool), -1), bound)
        pairs = np.nonzero(np.triu(correlations >= bound, 1))
        found.append(
            {
                "correlation": bound,
                "groups": len(np.unique(groups)),
                "largest": int(np.unique(groups, return_counts=True)[1].max()),
                "groups_with_several_labels": _count_divided(groups, labels),
                "pairs": len(pairs[0]),
                "one_label": _share_equal(labels, pairs),
                "one_scan": _share_equal(scans, pairs),
                "scans_divided": _count_divided(scans, groups),
            }
        )
    return found


def _correlate(slices: Sequence[Slice]) -> NDArray[np.float32]:
    """Correlations [N, N] of the thumbnails. Those of exact duplicates are 1, also if they are blank."""
    thumbnails = np.stack([item.thumbnail for item in slices])
    first: dict[bytes, int] = {}
    pictures = np.array([first.setdefault(item.identity, index) for index, item in enumerate(slices)])
    return np.where(pictures[:, np.newaxis] == pictures, np.float32(1), thumbnails @ thumbnails.T)


def _count_divided(groups: NDArray[np.int64], values: NDArray[np.int64]) -> int:
    """The number of groups with several values."""
    return sum(len(np.unique(values[groups == group])) > 1 for group in np.unique(groups))


def _share_equal(values: NDArray[np.int64], pairs: tuple[NDArray[np.int64], ...]) -> float:
    """The share of pairs with one value, rounded to 4 digits."""
    one, other = pairs
    return round(float((values[one] == values[other]).mean()), 4) if len(one) else 1.0
