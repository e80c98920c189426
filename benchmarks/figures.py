"""Turns measurements into figures with bounds, and finds the ratios that fell since they were last accepted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import Field, TypeAdapter

from benchmarks.wrk import Sample
from chestct.card import Frozen
from load_tests.check import read_yaml

FIGURES: Final = Path(__file__).with_name("figures.yaml")
RATIOS: Final = Path(__file__).with_name("ratios.yaml")
TOLERANCE: Final = 0.15
"""Share by which a ratio may be worse than the accepted one."""
CONNECTIONS: Final = 16
"""Connections of the figures."""


class Row(NamedTuple):
    """Names a measurement."""

    contender: str
    size: int
    """Number of connections; for a loop the images in a batch; 0 if requests come by the clock."""


Results = Mapping[Row, Sequence[Sample]]
"""A sample for each round."""


class Figure(Frozen):
    """A row of figures.yaml."""

    words: str
    unit: Literal["x", "s", "MB"]
    better: Literal["higher", "lower"]
    must: Annotated[float, Field(gt=0)]
    aim: Annotated[float, Field(gt=0)]

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.better == "higher" else value <= bound

    def verdict(self, value: float) -> str:
        return "aim" if self.holds(value, self.aim) else "must" if self.holds(value, self.must) else "missed"

    def worse_by(self, value: float, before: float) -> float:
        """Return the share by which the value is worse than before. Negative means better."""
        return 1 - value / before if self.better == "higher" else value / before - 1


def read_figures(path: Path = FIGURES) -> dict[str, Figure]:
    """Read the figures by name. Raises LoadError."""
    return read_yaml(path, TypeAdapter(dict[str, Figure]), "figures by name")


def read_ratios(path: Path = RATIOS) -> dict[str, float]:
    """Read the last accepted ratios by name; empty if there are none. Raises LoadError."""
    if not path.is_file():
        return {}
    return read_yaml(path, TypeAdapter(dict[str, Annotated[float, Field(gt=0)]]), "ratios by name")


def compute(results: Results) -> dict[str, list[float]]:
    """Return the ratios by their names in figures.yaml, a value for each round. Skips ratios without measurements."""
    ours = _rates(results, "http")
    pixels = _best(results, "infer")
    pairs = {
        **{name: (ours, _rates(results, name)) for name in ("fastapi", "bentoml", "flask")},
        "bare_loop": (ours, _best(results, "decode-infer")),
        "grpc_pixels": (_rates(results, "grpc-pixels"), pixels),
        "oip_pixels": (_rates(results, "oip"), pixels),
        "tail": (
            [sample.p99 for sample in results.get(Row("paced", 0), ())],
            [sample.p50 for sample in results.get(Row("http", 1), ())],
        ),
        "workers": (ours, _rates(results, "one-worker")),
    }
    return {
        name: [one / other for one, other in zip(above, below, strict=True)]
        for name, (above, below) in pairs.items()
        if above and below
    }


def _rates(results: Results, contender: str) -> list[float]:
    return [sample.rate for sample in results.get(Row(contender, CONNECTIONS), ())]


def _best(results: Results, loop: str) -> list[float]:
    """Return each round's rate of the fastest batch, which is the limit of the cores."""
    rows = [[sample.rate for sample in samples] for row, samples in results.items() if row.contender == loop]
    return [max(rates) for rates in zip(*rows, strict=True)]


def find_fallen(values: Mapping[str, Sequence[float]], accepted: Mapping[str, float]) -> list[str]:
    """Return a line for each ratio whose median is worse than the accepted one by more than TOLERANCE."""
    figures = read_figures()
    lines = []
    for name, before in accepted.items():
        if name not in values or name not in figures:
            continue
        now = float(np.median(values[name]))
        if (worse := figures[name].worse_by(now, before)) > TOLERANCE:
            lines.append(
                f"{name}: {now:.2f}, accepted {before:.2f}: {worse:.0%} worse, expected at most {TOLERANCE:.0%}"
            )
    return lines


def accept(values: Mapping[str, Sequence[float]], about: str, path: Path = RATIOS) -> None:
    """Write the medians as the accepted ratios. Ratios that were not measured stay."""
    figures = read_figures()
    ratios = {name: round(float(np.median(v)), 3) for name, v in values.items() if figures[name].unit == "x"}
    text = yaml.safe_dump(read_ratios(path) | ratios)
    path.write_text(f"# The ratios last accepted by `python -m benchmarks.bench --accept`: {about}.\n{text}")
