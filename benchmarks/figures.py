"""Turns measurements into figures with intervals and bounds, and finds those that fell since they were accepted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import Field, TypeAdapter
from scipy.stats import binom

from benchmarks.wrk import Sample
from chestct.document import Frozen
from load_tests.check import read_yaml

FIGURES: Final = Path(__file__).with_name("figures.yaml")
RATIOS: Final = Path(__file__).with_name("ratios.yaml")
Ratios = dict[str, dict[str, Annotated[float, Field(gt=0)]]]
"""By kind of machine: the last accepted ratios by name. The slower the engine, the less the rest of a server matters,
so ratios of different kinds can't be compared."""
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
"""A sample for each round; of the rows that come by the clock, a sample for each pair of benchmarks.tail."""


class Figure(Frozen):
    """A row of figures.yaml."""

    words: str
    unit: Literal["x", "s", "MB"]
    better: Literal["higher", "lower"]
    must: Annotated[float, Field(gt=0)]
    aim: Annotated[float, Field(gt=0)]

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.better == "higher" else value <= bound

    def verdict(self, values: Sequence[float]) -> str:
        """`aim` or `must` if the whole interval keeps that bound, `missed` if none of it does, else `not shown`."""
        ends = interval(values)
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if all(self.holds(end, bound) for end in ends):
                return name
        return "not shown" if any(self.holds(end, self.must) for end in ends) else "missed"

    def worse_by(self, value: float, before: float) -> float:
        """Return the share by which the value is worse than before. Negative means better."""
        return 1 - value / before if self.better == "higher" else value / before - 1


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval of the median: with 95 % confidence from six values on, otherwise the least and the most.

    It is between two of the values in order, so it assumes nothing about their distribution.
    """
    ordered = sorted(values)
    outside = int((binom.cdf(np.arange(len(ordered)), len(ordered), 0.5) <= 0.025).sum())
    first = max(outside, 1) - 1
    return ordered[first], ordered[len(ordered) - 1 - first]


def read_figures(path: Path = FIGURES) -> dict[str, Figure]:
    """Read the figures by name. Raises LoadError."""
    return read_yaml(path, TypeAdapter(dict[str, Figure]), "figures by name")


def kind_of(machine: Mapping[str, str]) -> str:
    """The kind of a machine. Ratios of one kind can be compared with each other."""
    return f"{machine['arithmetic']}, {machine['cores']} cores"


def read_ratios(path: Path = RATIOS) -> Ratios:
    """Read the last accepted ratios; empty if there are none. Raises LoadError."""
    return read_yaml(path, TypeAdapter(Ratios), "ratios by machine and name") if path.is_file() else {}


def compute(results: Results) -> dict[str, list[float]]:
    """Return the ratios by their names in figures.yaml, a value for each round. Skips ratios without measurements."""
    ours = _rates(results, "http")
    pixels = _best(results, "infer")
    pairs = {
        **{name: (ours, _rates(results, name)) for name in ("fastapi", "bentoml", "flask", "litserve")},
        **{
            f"fastapi_engine_{count}": (_rates(results, "http", count), _rates(results, "fastapi-engine", count))
            for count in (1, CONNECTIONS, 64)
        },
        "bare_loop": (ours, _best(results, "decode-infer")),
        "grpc_pixels": (_rates(results, "grpc-pixels"), pixels),
        "grpc_pixels_8": (_rates(results, "grpc-pixels-8"), pixels),
        "oip_pixels": (_rates(results, "oip"), pixels),
        "tail": ([sample.p99 for sample in results.get(Row(name, 0), ())] for name in ("paced", "paced-loop")),
        "workers": (ours, _rates(results, "one-worker")),
    }
    return {
        name: [one / other for one, other in zip(above, below, strict=True)]
        for name, (above, below) in pairs.items()
        if above and below
    }


def _rates(results: Results, contender: str, connections: int = CONNECTIONS) -> list[float]:
    return [sample.rate for sample in results.get(Row(contender, connections), ())]


def _best(results: Results, loop: str) -> list[float]:
    """Return each round's rate of the fastest batch, which is the limit of the cores."""
    rows = [[sample.rate for sample in samples] for row, samples in results.items() if row.contender == loop]
    return [max(rates) for rates in zip(*rows, strict=True)]


def find_fallen(values: Mapping[str, Sequence[float]], accepted: Mapping[str, float]) -> list[str]:
    """Return a line for each ratio whose whole interval is worse than the accepted one by more than TOLERANCE."""
    figures = read_figures()
    lines = []
    for name, before in accepted.items():
        if name not in values or name not in figures:
            continue
        ends = interval(values[name])
        if min(figures[name].worse_by(end, before) for end in ends) > TOLERANCE:
            measured = f"{np.median(values[name]):.2f} ({ends[0]:.2f} to {ends[1]:.2f})"
            lines.append(f"{name}: {measured}, accepted {before:.2f}: all of it is more than {TOLERANCE:.0%} worse")
    return lines


def accept(values: Mapping[str, Sequence[float]], machine: Mapping[str, str], path: Path = RATIOS) -> None:
    """Write the medians as the accepted ratios of this kind of machine. Ratios that were not measured stay."""
    figures = read_figures()
    ratios = {name: round(float(np.median(v)), 3) for name, v in values.items() if figures[name].unit == "x"}
    accepted, kind = read_ratios(path), kind_of(machine)
    accepted[kind] = accepted.get(kind, {}) | ratios
    head = "# `python -m benchmarks.bench --accept` writes these ratios by kind of machine, last at {commit}.\n"
    path.write_text(head.format(**machine) + yaml.safe_dump(accepted), encoding="utf-8")
