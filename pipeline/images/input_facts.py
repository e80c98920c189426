"""How facts about pictures lie in a file of arrays: one for each of chestct.image.Facts, picture by picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestct.image import Facts


def facts_arrays(facts: Sequence[Facts]) -> dict[str, Any]:
    """Each array [N] by its fact's name, `facts_` before it; `facts_layout` is [N, LAYOUT, LAYOUT]."""
    columns = zip(*facts, strict=True)
    return {f"facts_{name}": np.array(values) for name, values in zip(Facts._fields, columns, strict=True)}


def read_facts(arrays: Mapping[str, NDArray[Any]]) -> list[Facts]:
    """The facts that `facts_arrays` has laid out."""
    columns = [arrays[f"facts_{name}"] for name in Facts._fields]
    return [
        Facts(int(width), int(height), float(colour), float(contrast), float(frame), layout, bool(windowed))
        for width, height, colour, contrast, frame, layout, windowed in zip(*columns, strict=True)
    ]
