"""The facts that are watched for drift: what a feed of images is like, compared with train and valid.

The service counts them in its metrics, the model card holds their shares in train and valid, and `make drift` compares
the two. All use the names and the bins here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chestct.image import Facts

T = TypeVar("T")


class Scores(NamedTuple):
    """The scores of one image that are watched."""

    probabilities: NDArray[np.floating]
    """[classes]"""
    ood_score: float
    ood_limit: float
    """`thresholds.ood_limit` of the card."""
    chest_ct: float


class Watched(NamedTuple, Generic[T]):
    """A fact that is watched, read from a T."""

    name: str
    """Also of the log's column; the metric's is `chestct_` and this."""
    unit: str
    about: str
    edges: tuple[float, ...]
    """Ascending. Bin 0 holds values up to edges[0], the last one those above edges[-1]; upper edges are included."""
    read: Callable[[T], float]


INPUT: Final[tuple[Watched[Facts], ...]] = (
    Watched(
        "input_side",
        "pixels",
        "Longer side of the picture.",
        (256, 340, 380, 400, 420, 460, 600),
        lambda facts: max(facts.width, facts.height),
    ),
    Watched(
        "input_tissue",
        "grey level of 255",
        "Grey level of the soft tissue, which the window sets.",
        (80, 104, 112, 120, 128, 160, 200, 228),
        lambda facts: facts.tissue,
    ),
    Watched(
        "input_air",
        "grey level of 255",
        "Grey level of the lung, or of air if there is no lung.",
        (6, 14, 20, 25, 32, 64, 96),
        lambda facts: facts.air,
    ),
    Watched(
        "input_body",
        "share",
        "Share of the picture that the body's box fills.",
        (0.7, 0.8, 0.88, 0.93, 0.96, 0.98),
        lambda facts: facts.body,
    ),
    Watched(
        "input_contrast",
        "grey levels of 255",
        "Standard deviation of the grey levels.",
        (32, 44, 49, 53, 58, 70, 85),
        lambda facts: facts.contrast,
    ),
    Watched(
        "input_blockiness",
        "ratio",
        "Steps of the grey levels at every eighth column by those elsewhere. JPEG makes it more than 1.",
        (0.8, 0.9, 1, 1.1, 1.2, 1.35),
        lambda facts: facts.blockiness,
    ),
)
"""Facts about the original picture."""

SCORES: Final[tuple[Watched[Scores], ...]] = (
    Watched(
        "familiarity",
        "share of the limit",
        "Out-of-distribution score as a share of the model's limit: above 1 is unfamiliar.",
        (0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1, 1.25),
        lambda scores: scores.ood_score / scores.ood_limit,
    ),
    Watched(
        "chest_ct",
        "probability",
        "Probability that the picture is a chest CT slice.",
        (0.5, 0.9, 0.97, 0.99, 0.997, 0.999),
        lambda scores: scores.chest_ct,
    ),
    Watched(
        "confidence",
        "probability",
        "Probability of the most probable class, also if the label is withheld.",
        (0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99),
        lambda scores: float(scores.probabilities.max()),
    ),
)
"""Facts about the model's scores."""

WATCHED: Final[tuple[Watched[Any], ...]] = (*INPUT, *SCORES)
EDGES: Final[Mapping[str, tuple[float, ...]]] = {each.name: each.edges for each in WATCHED}
"""Upper edges of all bins but the last, by the fact's name."""


def measure(facts: Facts | None, scores: Scores) -> dict[str, float]:
    """The watched facts of one image by name; those on the input only if there are `facts`."""
    on_input = {each.name: float(each.read(facts)) for each in INPUT} if facts else {}
    return {**on_input, **{each.name: float(each.read(scores)) for each in SCORES}}


def count(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """Number of the values [N] of a fact in each of its bins, [len(edges) + 1]."""
    edges = EDGES[name]
    return np.bincount(np.searchsorted(edges, np.asarray(values), side="left"), minlength=len(edges) + 1)
