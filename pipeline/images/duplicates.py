"""Which pictures are one and the same, and which only look alike: what copies, twins and clusters rest on.

Two pictures are the same where every pixel of the model's input is equal, or where their thumbnails correlate so highly
that one is the other encoded, scaled, brightened or marked anew. A picture that was cropped or mirrored is not found.
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
"""Side of the pictures that are correlated, in pixels."""


def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [N, 64 * 64] of `pixels` [N, height, width, 1]: a product of two is their correlation, -1 to 1.

    A blank picture is all zeros: it correlates with nothing, not even with itself.
    """
    side = (THUMBNAIL, THUMBNAIL)
    small = [Image.fromarray(image[:, :, 0]).resize(side, Image.Resampling.BILINEAR) for image in pixels]
    vectors = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    vectors -= vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6))


def cluster(pixels: NDArray[np.uint8], correlation: float) -> NDArray[np.int64]:
    """Group look-alikes: connected components of images whose thumbnails correlate by `correlation` or more.

    `pixels` uint8 [N, height, width, 1]; returns int64 [N]. A data set without patient ids has no better sign that
    two slices are of one scan.
    """
    vectors = thumbnails(pixels)
    rows, columns = np.nonzero(vectors @ vectors.T >= correlation)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(vectors), len(vectors)))
    _, components = connected_components(links, directed=False)
    return np.asarray(components, np.int64)


def find_twins(pixels: NDArray[np.uint8], others: NDArray[np.uint8], correlation: float) -> NDArray[np.int64]:
    """For each of `pixels` [N, S, S, 1] the index of the same picture in `others` [M, S, S, 1], -1 where there is none.

    Equal pixels come first, then the thumbnail that correlates most, if by `correlation` or more.
    """
    known = {image.tobytes(): index for index, image in reversed(list(enumerate(others)))}
    likeness = thumbnails(pixels) @ thumbnails(others).T
    near = np.where(likeness.max(axis=1) >= correlation, likeness.argmax(axis=1), -1)
    return np.array([known.get(image.tobytes(), best) for image, best in zip(pixels, near, strict=True)], np.int64)


def require_no_twins(
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    others: NDArray[np.uint8],
    other_names: Sequence[str],
    correlation: float,
) -> None:
    """Raise DataError where one of `pixels` [N, S, S, 1] stands in `others` [M, S, S, 1] too."""
    if not len(pixels):
        return
    found = [
        (name, other_names[twin])
        for name, twin in zip(names, find_twins(pixels, others, correlation), strict=True)
        if twin >= 0
    ]
    if found:
        raise DataError(
            f"{len(found)} test images are counted as without a twin and have one in train or valid, such as"
            f" {found[0][0]} = {found[0][1]}; `dvc repro --force prepare` looks for twins again"
        )
