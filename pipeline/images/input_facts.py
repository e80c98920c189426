"""Input facts (chestct.image.Facts) of many pictures as arrays: one for each fact, with a row for each picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestct.image import Facts


def to_arrays(facts: Sequence[Facts]) -> dict[str, Any]:
    """The facts of N pictures as arrays [N] named `facts_` and the fact; those of coarse pictures are [N, h, w]."""
    columns = zip(*facts, strict=True)
    return {f"facts_{name}": np.array(values) for name, values in zip(Facts._fields, columns, strict=True)}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> list[Facts]:
    """The facts that `to_arrays` stored."""
    columns = {name: arrays[f"facts_{name}"] for name in Facts._fields}
    rows = zip(*(values if values.ndim > 1 else values.tolist() for values in columns.values()), strict=True)
    return [Facts(**dict(zip(columns, row, strict=True))) for row in rows]


def log_geometry(facts: Sequence[Facts]) -> NDArray[np.float64]:
    """Logarithms of width, height and aspect of N pictures, [N, 3]."""
    return np.log([[each.width, each.height, each.width / each.height] for each in facts])
