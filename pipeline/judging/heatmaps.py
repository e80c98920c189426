"""Tests of heat maps (class-activation maps): whether they lie on the body, and whether they explain the answer."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes, label
from scipy.stats import rankdata

QUARTER: Final = 0.25
"""Share of the map that `hide_quarter` hides."""

Floats = NDArray[np.floating]


def body_mask(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The body in `pixels` uint8 [S, S, 1]: the largest object lighter than air, with its holes filled; bool [S, S]."""
    levels = pixels[:, :, 0]
    dark, light = np.percentile(levels, (1, 99))
    solid = binary_closing(levels > dark + 0.15 * (light - dark), iterations=2)
    parts, count = label(solid)
    if count == 0:
        return np.ones_like(solid)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(binary_fill_holes(parts == largest))


def mass_inside(heatmap: Floats, mask: NDArray[np.bool_]) -> float:
    """Share of the positive part of the map [h, w] that lies inside the mask [S, S], or 1 if the map has none."""
    supporting = Image.fromarray(np.maximum(heatmap, 0).astype(np.float32))
    spread = np.asarray(supporting.resize(mask.shape[::-1], Image.Resampling.BILINEAR))
    total = float(spread.sum())
    return float(spread[mask].sum()) / total if total > 0 else 1.0


def hide_quarter(pixels: NDArray[np.uint8], heatmap: Floats, *, most: bool) -> NDArray[np.uint8]:
    """Cover the quarter of `pixels` uint8 [S, S, 1] where the map [h, w] is highest, or lowest, with the mean grey."""
    order = np.argsort(-heatmap if most else heatmap, axis=None, kind="stable")
    cells = np.zeros(heatmap.size, bool)
    cells[order[: max(1, round(QUARTER * heatmap.size))]] = True
    hidden = Image.fromarray(cells.reshape(heatmap.shape)).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    return np.where(np.asarray(hidden)[:, :, np.newaxis], np.uint8(round(float(pixels.mean()))), pixels)


def rank_correlations(one: Floats, other: Floats) -> Floats:
    """Spearman's rank correlation [N] of maps [N, h, w]. It is 0 if a map is constant."""
    a, b = (rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other))
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (a, b))
    lengths = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-9))
