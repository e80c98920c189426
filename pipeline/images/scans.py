"""Groups slices by the patient's scan, because slices of one scan must never be on both sides of a split.

The files of the public data set were grouped once by looking at them: scans.json. Other images get the automatic rule:
they belong to the scan of the image that they correlate with most, if they do by `prepare.scan_correlation` or more.
"""

from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import Frozen
from pipeline.images.slices import Slice

CURATED: Final = Path(__file__).with_name("scans.json")


class Curated(Frozen):
    """scans.json: files that a person has grouped by looking at them."""

    rule: str
    """How they were grouped."""
    correlation: float
    """The lowest thumbnail correlation of the groups that were looked at first."""
    looked_at: date
    scans: dict[str, str]
    """The scan of each file, by the SHA-256 of its bytes."""

    @classmethod
    def read(cls) -> "Curated":
        return cls.model_validate_json(CURATED.read_bytes())


def find_scans(slices: list[Slice], correlation: float) -> NDArray[np.int64]:
    """The scan of each slice, int64 [N]. Equal numbers are one scan; test images do not change those of the others."""
    if not slices:
        return np.zeros(0, np.int64)
    scan_of = Curated.read().scans
    names = sorted({scan_of[item.file.sha256] for item in slices if item.file.sha256 in scan_of})
    given = np.array([names.index(scan_of[sha]) if (sha := item.file.sha256) in scan_of else -1 for item in slices])
    thumbnails = np.stack([item.thumbnail for item in slices])
    correlations = thumbnails @ thumbnails.T
    first: dict[bytes, int] = {}
    pictures = np.array([first.setdefault(item.identity, index) for index, item in enumerate(slices)])
    correlations[pictures[:, np.newaxis] == pictures] = 1  # blank pictures correlate by 0
    known = np.array([item.file.split != "test" for item in slices])
    scans = given.copy()
    scans[known] = join(correlations[np.ix_(known, known)], given[known], correlation)
    _, numbers = np.unique(join(correlations, scans, correlation), return_inverse=True)
    return np.asarray(numbers, np.int64)


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
