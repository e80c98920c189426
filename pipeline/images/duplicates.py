"""Finds duplicates among pictures.

Exact duplicates have equal pixels at the model's input size. Near duplicates have thumbnails that correlate so highly
that one is the other after encoding, scaling, cropping, brightening or marking. Mirrored pictures are not found.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.images.thumbnails import thumbnails


def find_duplicates(pixels: NDArray[np.uint8], known: NDArray[np.uint8], correlation: float) -> NDArray[np.int64]:
    """For each of `pixels` [N, S, S, 1], the index of its duplicate in `known` [M, S, S, 1], or -1; int64 [N].

    An exact duplicate comes first, then the thumbnail that correlates most, if it does by `correlation` or more.
    """
    exact = {image.tobytes(): index for index, image in reversed(list(enumerate(known)))}
    correlations = thumbnails(pixels) @ thumbnails(known).T
    near = np.where(correlations.max(axis=1) >= correlation, correlations.argmax(axis=1), -1)
    return np.array([exact.get(image.tobytes(), best) for image, best in zip(pixels, near, strict=True)], np.int64)


def require_no_duplicates(
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    known: NDArray[np.uint8],
    known_names: Sequence[str],
    correlation: float,
) -> None:
    """Raise DataError if one of `pixels` [N, S, S, 1] has a duplicate in `known` [M, S, S, 1]."""
    if not len(pixels):
        return
    found = [
        (name, known_names[duplicate])
        for name, duplicate in zip(names, find_duplicates(pixels, known, correlation), strict=True)
        if duplicate >= 0
    ]
    if found:
        raise DataError(
            f"{len(found)} test images are listed as having no duplicate in train or valid, but have one, such as"
            f" {found[0][0]} = {found[0][1]}; `dvc repro --force prepare` looks for duplicates again"
        )
