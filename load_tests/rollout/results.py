"""Keeps the rows of each run, and writes the table of docs/reference/rollouts.md."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from load_tests import kept as kept_results
from load_tests.machine import cpu_name
from load_tests.rollout.events import Row
from load_tests.server import ROOT
from pipeline.core.pages import replace_part

PAGE: Final = ROOT / "docs" / "reference" / "rollouts.md"
FOLDER: Final = ROOT / "build" / "rollout"
"""Holds a file for each complete run, so that an interrupted command continues after it."""


class Run(NamedTuple):
    """All events once, or those that are complete."""

    rate: float
    """Requests a second."""
    rows: Sequence[Row]


def keep(number: int, run: Run, image: str) -> None:
    """Keep the complete events of a run of the image with this ID."""
    kept_results.keep(_file(number), {"image": image}, run)


def kept(number: int, image: str) -> Run | None:
    """Return what an earlier command has measured of the run with the same image, or None."""
    found = kept_results.kept(_file(number), {"image": image})
    if found is None:
        return None
    rate, rows = found
    return Run(rate, [Row(*row) for row in rows])


def table(runs: Sequence[Run]) -> str:
    """Return a Markdown table of all rows."""
    lines = [
        "| run | what | sent | answered | lost | retried | over after | p99 before | during | after | must | held |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(line(number, row) for number, run in enumerate(runs, 1) for row in run.rows)])


def line(number: int, row: Row) -> str:
    """Return a line of the table. `number`: of the run."""
    times = " | ".join(f"{value:.0f} ms" for value in row.p99)
    lost = sum(row.lost.values())
    codes = f" ({', '.join(f'{code} {count}' for code, count in row.lost.items())})" if lost else ""
    counts = f"{row.sent} | {row.sent - lost} | {lost}{codes} | {row.retried} | {row.over:.1f} s"
    return f"| {number} | {row.what} | {counts} | {times} | {row.must} | {'yes' if row.held else '**no**'} |"


def write_page(runs: Sequence[Run], image: str, commit: str) -> None:
    """Write the table between the markers of PAGE."""
    day = datetime.now(UTC).date().isoformat()
    rates = " and ".join(sorted({f"{run.rate:.0f}" for run in runs}))
    about = f"{day}, commit {commit}, image {image[:12]}, {rates} requests/s, {os.cpu_count()} cores of {cpu_name()}."
    page = replace_part(PAGE.read_text(encoding="utf-8"), "make rollout", f"{about}\n\n{table(runs)}\n")
    PAGE.write_text(page, encoding="utf-8")


def _file(number: int) -> Path:
    return FOLDER / f"run-{number}.json"
