"""Holds Locust's measurements to the bounds of slo.yaml."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeVar

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from chestct.document import Frozen
from load_tests.verdict import LoadError

T = TypeVar("T")

CSV: Final = "locust"
"""Prefix of Locust's file names."""


class Bound(Frozen):
    """Bounds of one row of Locust's table."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)]
    max_p95_ms: Annotated[float, Field(gt=0)]
    max_p99_ms: Annotated[float, Field(gt=0)]
    min_requests_per_second: Annotated[float, Field(ge=0)]


class Objectives(Frozen):
    """Bounds of one scenario."""

    rows: dict[str, Bound]
    """By name of the row."""
    max_memory_growth: Annotated[float, Field(ge=1)] | None = None
    """Memory of the warm server in the last third of the time, as a multiple of the first third's."""


class Row(NamedTuple):
    """All requests of one name. Percentiles are in milliseconds."""

    requests: int
    failures: int
    rate: float
    """Requests a second."""
    p95: float
    p99: float


def read_objectives(path: Path, scenario: str) -> Objectives:
    """Read the bounds of one scenario. Raises LoadError."""
    found = read_yaml(path, TypeAdapter(dict[str, Objectives]), "rows of bounds by scenario")
    if scenario not in found:
        raise LoadError(f"{path}: expected bounds for {scenario}, got some for {', '.join(found)}")
    return found[scenario]


def read_yaml(path: Path, kind: TypeAdapter[dict[str, T]], what: str) -> dict[str, T]:
    """Read a file of `kind`, which the message of LoadError calls `what`."""
    try:
        return kind.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise LoadError(f"{path}: expected {what}: {' '.join(str(error).split())}") from error


def read_rows(folder: Path) -> dict[str, Row]:
    """Read the rows that have requests from Locust's CSV files, by name. Raises LoadError."""
    return {
        row["Name"]: Row(
            int(row["Request Count"]),
            int(row["Failure Count"]),
            float(row["Requests/s"]),
            float(row["95%"]),
            float(row["99%"]),
        )
        for row in _read(folder / f"{CSV}_stats.csv")
        if row["Name"] != "Aggregated" and int(row["Request Count"])
    }


def judge(rows: Mapping[str, Row], memory: Sequence[float], objectives: Objectives) -> list[str]:
    """Return each missed bound in words.

    `memory`: bytes, at equal intervals. Raises LoadError if a row has no bound, or if memory has one and was not
    measured.
    """
    if unknown := rows.keys() - objectives.rows.keys():
        raise LoadError(f"expected bounds for every row, got none for {', '.join(sorted(unknown))}")
    misses = [
        miss
        for name, bound in objectives.rows.items()
        for miss in (_misses(name, rows[name], bound) if name in rows else _absent(name, bound))
    ]
    if objectives.max_memory_growth is not None:
        before, after = thirds(warm(memory))
        if after > objectives.max_memory_growth * before:
            limit = objectives.max_memory_growth
            misses.append(f"memory grew from {before:.0f} to {after:.0f} MB, expected at most {limit:g} times")
    return misses


def warm(memory: Sequence[float]) -> Sequence[float]:
    """Drop the first third, in which workers start and the first requests allocate memory that stays."""
    return memory[len(memory) // 3 :]


def thirds(memory: Sequence[float]) -> tuple[float, float]:
    """Return the mean MB in the first and in the last third. `memory`: bytes, at equal intervals. Raises LoadError."""
    if not memory:
        raise LoadError("the server's memory was not measured; that takes a second, and a server of the test's own")
    third = max(1, len(memory) // 3)
    return float(np.mean(memory[:third])) / 2**20, float(np.mean(memory[-third:])) / 2**20


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise LoadError(f"{path}: Locust left no statistics; its own message above says why")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _misses(name: str, row: Row, bound: Bound) -> list[str]:
    error_rate = row.failures / row.requests
    misses = []
    if error_rate > bound.max_error_rate:
        misses.append(f"{name}: error rate {error_rate:.4f}, expected at most {bound.max_error_rate:g}")
    for percentile, value, limit in (("p95", row.p95, bound.max_p95_ms), ("p99", row.p99, bound.max_p99_ms)):
        if value > limit:
            misses.append(f"{name}: {percentile} {value:.0f} ms, expected at most {limit:.0f} ms")
    if row.rate < bound.min_requests_per_second:
        misses.append(f"{name}: {row.rate:.1f} requests/s, expected at least {bound.min_requests_per_second:g}")
    return misses


def _absent(name: str, bound: Bound) -> list[str]:
    return [f"{name}: no request was made"] if bound.min_requests_per_second else []
