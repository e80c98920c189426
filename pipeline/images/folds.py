"""Divides the images of train and valid into folds."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.core.errors import DataError
from pipeline.images.classes import class_names


def make_folds(labels: NDArray[np.int64], scans: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Assign each image to a fold. Folds have similar class shares, and no scan spans two folds.

    `labels` and `scans` int64 [N]. Returns int64 [N], 0 to `folds` - 1. Raises DataError if a class is missing from
    a fold.
    """
    fold_of = np.zeros(len(labels), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(labels, labels, scans)):
        fold_of[held_out] = fold
    for label, name in enumerate(class_names()):
        reached = len(np.unique(fold_of[labels == label]))
        if reached < folds:
            count = len(np.unique(scans[labels == label]))
            raise DataError(
                f"{name}: its images are of {count} scans and reach {reached} of {folds} folds; add images, or lower"
                " prepare.folds, or raise prepare.scan_correlation"
            )
    return fold_of
