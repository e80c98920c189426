"""Whether images differ from the reference in the model card: population stability index and a test, fact by fact.

Slices of one scan are alike, so 50 slices of three scans say less than 50 slices of 50 scans. The test counts images
as fewer independent ones, by how alike the slices of one scan are in the reference. Then it draws, from what the
reference leaves possible, how far such a number of images strays by chance.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import FactReference, Reference

FLOOR: Final = 0.005
"""Least share of a bin in the index, which would be infinite for an empty bin. The alerts use the same."""
LEVEL: Final = 0.02
"""Chance of a false alarm over all facts together, as far as the assumptions hold."""
CAUTION: Final = 1.5
"""Slices of one scan are taken to be this much more alike than measured, because the reference has few scans."""
DRAWS: Final = 10_000

Floats = NDArray[np.floating]


class Drift(NamedTuple):
    """One fact, now and in the reference."""

    fact: str
    reference: Floats
    """[bins], shares."""
    now: Floats
    """[bins], shares."""
    images: int
    psi: float
    p: float
    """Probability that images like the reference are this far from it, or further."""
    drifted: bool
    """Whether `p` is so small that this fact drifted, with all facts' chances together at LEVEL."""


def stability_index(now: Floats, reference: Floats) -> Floats:
    """Population stability index [...] of shares [..., bins]. No share counts as less than FLOOR."""
    one, other = np.maximum(now, FLOOR), np.maximum(reference, FLOOR)
    return np.asarray(((one - other) * np.log(one / other)).sum(axis=-1))


def independent(images: int, same_scan: float, clumping: float) -> float:
    """Number of independent images that vary as much as these, of which two are of one scan so often."""
    return images / (1 + (images - 1) * same_scan * min(1.0, CAUTION * clumping))


def compare(
    counts: dict[str, NDArray[np.int64]], reference: Reference, same_scan: float | None, seed: int
) -> list[Drift]:
    """Compare counts by bin of each fact with the reference.

    `same_scan` is the probability that two of the images are of one scan; if it is None, that of the reference. A fact
    without images is left out.
    """
    rng = np.random.default_rng(seed)
    found = {name: each for name, each in counts.items() if each.sum()}
    alike = reference.same_scan if same_scan is None else same_scan
    return [_compare(name, each, reference, alike, LEVEL / len(found), rng) for name, each in found.items()]


def _compare(
    name: str, counts: NDArray[np.int64], reference: Reference, same_scan: float, level: float, rng: np.random.Generator
) -> Drift:
    images, fact = int(counts.sum()), reference.facts[name]
    shares, now = np.array(fact.shares), counts / images
    psi = float(stability_index(now, shares))
    strays = _draw_indices(fact, reference, independent(images, same_scan, fact.clumping), rng)
    p = (1 + int((strays >= psi - 1e-12).sum())) / (1 + DRAWS)
    return Drift(name, shares, now, images, psi, p, p <= level)


def _draw_indices(fact: FactReference, reference: Reference, images: float, rng: np.random.Generator) -> Floats:
    """Indices [DRAWS] of so many independent images of sources that the reference's images may come from."""
    behind = independent(reference.images, reference.same_scan, fact.clumping)
    sources = rng.dirichlet(behind * np.array(fact.shares) + 0.5, DRAWS)
    number = max(1, round(images))
    return stability_index(rng.multinomial(number, sources) / number, np.array(fact.shares))
