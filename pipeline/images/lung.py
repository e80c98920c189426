"""Measures how much lung a standard picture shows. Slices of the abdomen and the pelvis show none."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from chestct.standard_picture import AIR, TISSUE

_DARK: Final = AIR + 0.25 * (TISSUE - AIR)
"""Level of the standard picture below which a pixel in the body is lung or gas. Most windows show fat lighter."""


def lung_share(picture: NDArray[np.uint8]) -> float:
    """The largest dark area in the body, as a share of the body; `picture` is a standard picture, uint8 [S, S, 1].

    That is a lung, or both if they touch in the slice. Gas in the bowel is in many small areas. 0 if there is no body.
    """
    body = _fill(picture[:, :, 0] != AIR)
    areas, _ = label(body & (picture[:, :, 0] < _DARK))
    return float(np.bincount(areas[areas > 0], minlength=1).max() / max(body.sum(), 1))


def _fill(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what lies between pixels of a row and also between pixels of a column: lung at the level of air."""
    reached = np.logical_or.accumulate
    rows = reached(body, axis=1) & reached(body[:, ::-1], axis=1)[:, ::-1]
    columns = reached(body, axis=0) & reached(body[::-1], axis=0)[::-1]
    return np.asarray(rows & columns)
