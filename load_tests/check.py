"""Holds Locust's measurements to the bounds of slo.yaml, and writes a report with a picture."""

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from chestct.card import Frozen
from load_tests.verdict import LoadError

CSV: Final = "locust"
"""Prefix of Locust's file names."""
REPORT: Final = "report.md"
PICTURE: Final = "load.png"

_ACCENT: Final = "#1f6feb"
_ALARM: Final = "#cf222e"
_LEGEND: Final[dict[str, Any]] = {"frameon": False, "loc": "lower right", "bbox_to_anchor": (1, 0.93), "ncols": 3}
"""Places legends above the panel, where they cover no line."""


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
    p50: float
    p95: float
    p99: float


class History(NamedTuple):
    """All requests together, about a value a second. Percentiles without an answer are NaN."""

    seconds: NDArray[np.float64]
    users: NDArray[np.float64]
    answered: NDArray[np.float64]
    """Requests until then, including failed ones."""
    failed: NDArray[np.float64]
    percentiles: dict[str, NDArray[np.float64]]
    """Milliseconds, over the last seconds, by name: p50, p95, p99."""


def read_objectives(path: Path, scenario: str) -> Objectives:
    """Read the bounds of one scenario. Raises LoadError."""
    try:
        found = TypeAdapter(dict[str, Objectives]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise LoadError(f"{path}: expected rows of bounds by scenario: {' '.join(str(error).split())}") from error
    if scenario not in found:
        raise LoadError(f"{path}: expected bounds for {scenario}, got some for {', '.join(found)}")
    return found[scenario]


def read_rows(folder: Path) -> dict[str, Row]:
    """Read the rows that have requests from Locust's CSV files, by name. Raises LoadError."""
    return {
        row["Name"]: Row(
            int(row["Request Count"]),
            int(row["Failure Count"]),
            float(row["Requests/s"]),
            *(float(row[name]) for name in ("50%", "95%", "99%")),
        )
        for row in _read(folder / f"{CSV}_stats.csv")
        if row["Name"] != "Aggregated" and int(row["Request Count"])
    }


def read_history(folder: Path) -> History:
    """Read Locust's history. Raises LoadError."""
    by_second = {
        int(row["Timestamp"]): row
        for row in _read(folder / f"{CSV}_stats_history.csv")
        if row["Name"] == "Aggregated" and row["50%"] != "N/A"
    }

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(row[name]) for row in by_second.values()])

    times = np.array(list(by_second), float)
    percentiles = {name.replace("%", ""): column(name) for name in ("50%", "95%", "99%")}
    return History(
        times - times.min(initial=np.inf),
        column("User Count"),
        column("Total Request Count"),
        column("Total Failure Count"),
        {f"p{name}": np.where(values > 0, values, np.nan) for name, values in percentiles.items()},
    )


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


def write_report(
    folder: Path, heading: str, words: str, objectives: Objectives, memory: Sequence[float], misses: Sequence[str]
) -> Path:
    """Write REPORT and PICTURE beside Locust's files. Returns the path of the report."""
    history = read_history(folder)
    _draw(history, memory, heading, folder / PICTURE)
    lines = [f"# {heading}: {'FAIL' if misses else 'PASS'}", "", words, f"{datetime.now(UTC):%d %B %Y}.", ""]
    lines += [*(f"- FAIL: {miss}" for miss in misses), *([""] if misses else [])]
    lines += ["| row | requests | errors | requests/s | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|---|---|---|"]
    lines += [_line(name, row, objectives.rows[name]) for name, row in sorted(read_rows(folder).items())]
    lines += ["", "In brackets the bounds: at least so many requests a second, and at most as much of the others.", ""]
    if memory:
        before, after = thirds(warm(memory))
        growth = objectives.max_memory_growth
        bound = f" ({growth:g} times as much at most)" if growth is not None else ""
        lines += [
            f"The server's memory, after a third of the time: {before:.0f} MB in the first third of the rest, "
            f"{after:.0f} MB in the last{bound}.",
            "",
        ]
    lines += [f"![Requests, latency, users and memory over time]({PICTURE})"]
    if errors := _read(folder / f"{CSV}_failures.csv"):
        lines += ["", "| row | error | times |", "|---|---|---|"]
        lines += [f"| `{error['Name']}` | `{error['Error']}` | {error['Occurrences']} |" for error in errors]
    path = folder / REPORT
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


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


def _line(name: str, row: Row, bound: Bound) -> str:
    rate = f"{row.rate:.1f} ({bound.min_requests_per_second:g})" if bound.min_requests_per_second else f"{row.rate:.1f}"
    cells = (
        f"`{name}`",
        f"{row.requests}",
        f"{row.failures} ({bound.max_error_rate:g} of them)" if bound.max_error_rate else f"{row.failures} (0)",
        rate,
        f"{row.p50:.0f}",
        f"{row.p95:.0f} ({bound.max_p95_ms:.0f})",
        f"{row.p99:.0f} ({bound.max_p99_ms:.0f})",
    )
    return f"| {' | '.join(cells)} |"


def _draw(history: History, memory: Sequence[float], heading: str, path: Path) -> None:
    figure = Figure(figsize=(8, 7.5 if memory else 6), layout="constrained")
    panels = figure.subplots(4 if memory else 3, sharex=True)
    rate, latency, users = panels[:3]
    seconds = history.seconds
    if len(seconds) > 1:
        middles, steps = (seconds[1:] + seconds[:-1]) / 2, np.diff(seconds)
        rate.plot(middles, np.diff(history.answered) / steps, color=_ACCENT, label="requests")
        if history.failed.any():
            rate.plot(middles, np.diff(history.failed) / steps, color=_ALARM, label="errors")
            rate.legend(**_LEGEND)
    rate.set_ylabel("requests/s")
    for (name, values), colour in zip(history.percentiles.items(), ("#9ecbff", _ACCENT, "#0a3069"), strict=True):
        latency.plot(seconds, values, color=colour, label=name)
    latency.legend(**_LEGEND)
    latency.set_ylabel("latency, ms")
    users.step(seconds, history.users, where="post", color=_ACCENT)
    users.set_ylabel("users")
    if memory:
        panels[3].plot(np.linspace(0, seconds.max(initial=0), len(memory)), np.array(memory) / 2**20, color=_ACCENT)
        panels[3].set_ylabel("memory, MB")
    for axes in panels:
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[-1].set_xlabel("seconds")
    figure.suptitle(heading, x=0.02, ha="left", fontsize=11)
    figure.savefig(path, dpi=110)
