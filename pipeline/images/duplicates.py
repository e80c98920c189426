"""Finds duplicates and look-alikes among pictures.

Exact duplicates have equal pixels at the model's input size. Near duplicates have thumbnails that correlate so highly
that one is the other after encoding, scaling, brightening or marking. Cropped and mirrored pictures are not found.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.core.errors import DataError

THUMBNAIL: Final = 64
"""Height and width of the thumbnails, in pixels."""


def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails of uint8 [N, height, width, 1] as unit vectors, float32 [N, 64 * 64].

    The product of two vectors is their correlation, -1 to 1. The vector of a blank picture is zero: it correlates with
    nothing, not even with itself.
    """
    side = (THUMBNAIL, THUMBNAIL)
    small = [Image.fromarray(image[:, :, 0]).resize(side, Image.Resampling.BILINEAR) for image in pixels]
    vectors = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    vectors -= vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6))


def cluster(pixels: NDArray[np.uint8], correlation: float) -> NDArray[np.int64]:
    """Group look-alikes: connected components of images whose thumbnails correlate by `correlation` or more.

    `pixels` uint8 [N, height, width, 1]; returns int64 [N]. Without patient ids, looking alike is the best sign that
    two slices come from one scan.
    """
    vectors = thumbnails(pixels)
    rows, columns = np.nonzero(vectors @ vectors.T >= correlation)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(vectors), len(vectors)))
    _, components = connected_components(links, directed=False)
    return np.asarray(components, np.int64)


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
