"""Checks of class-activation maps: do they lie on the body, and does what they point at move the answer?"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes, label
from scipy.stats import rankdata

QUARTER: Final = 0.25

Floats = NDArray[np.floating]


def body_mask(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [S, S] of uint8 [S, S, 1]: the largest thing lighter than the air about it, with what it encloses."""
    levels = pixels[:, :, 0]
    dark, light = np.percentile(levels, (1, 99))
    solid = binary_closing(levels > dark + 0.15 * (light - dark), iterations=2)
    parts, count = label(solid)
    if count == 0:
        return np.ones_like(solid)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(binary_fill_holes(parts == largest))


def mass_inside(heatmap: Floats, mask: NDArray[np.bool_]) -> float:
    """Share of what speaks for the class in the map [h, w] that lies inside the mask [S, S]; 1 where nothing speaks."""
    supporting = Image.fromarray(np.maximum(heatmap, 0).astype(np.float32))
    spread = np.asarray(supporting.resize(mask.shape[::-1], Image.Resampling.BILINEAR))
    total = float(spread.sum())
    return float(spread[mask].sum()) / total if total > 0 else 1.0


def hide_quarter(pixels: NDArray[np.uint8], heatmap: Floats, *, most: bool) -> NDArray[np.uint8]:
    """uint8 [S, S, 1] with its mean grey over the quarter of the map [h, w] that speaks most (or least) for it."""
    order = np.argsort(-heatmap if most else heatmap, axis=None, kind="stable")
    cells = np.zeros(heatmap.size, bool)
    cells[order[: max(1, round(QUARTER * heatmap.size))]] = True
    hidden = Image.fromarray(cells.reshape(heatmap.shape)).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    return np.where(np.asarray(hidden)[:, :, np.newaxis], np.uint8(round(float(pixels.mean()))), pixels)


def rank_correlations(one: Floats, other: Floats) -> Floats:
    """Spearman's correlation [N] of maps [N, h, w], 0 for a constant one."""
    a, b = (rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    lengths = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-9))
