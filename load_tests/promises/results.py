"""Keeps what a run measured of each promise, and writes the table."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from load_tests import kept as kept_results
from load_tests.server import ROOT
from pipeline.core.pages import replace_part

PAGE: Final = ROOT / "docs" / "reference" / "reliability.md"
FOLDER: Final = ROOT / "build" / "hold"
"""Holds one file for each complete part, so that an interrupted run continues after it."""


class Row(NamedTuple):
    """One promise and its measurement."""

    what: str
    measured: str
    must: str
    held: bool


class Part(NamedTuple):
    name: str
    minutes: float
    rows: Sequence[Row]


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def memory_row(memory: Sequence[float]) -> Row:
    """Compare the peak memory of all processes with the memory limit of the pod. `memory`: bytes, a value a second."""
    manifest = yaml.safe_load((ROOT / "k8s/base/deployment.yaml").read_text(encoding="utf-8"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    mebibytes = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    most = max(memory)
    bound = f"{megabytes(mebibytes << 20)}, the pod's limit"
    return Row("memory at most, all processes", megabytes(most), bound, most <= mebibytes << 20)


def keep(part: Part, commit: str, scale: float) -> None:
    kept_results.keep(_file(part.name), {"commit": commit, "scale": scale}, part)


def kept(name: str, commit: str, scale: float) -> Part | None:
    """Return the result of an earlier run of the same commit and length, or None."""
    found = kept_results.kept(_file(name), {"commit": commit, "scale": scale})
    if found is None:
        return None
    name, minutes, rows = found
    return Part(name, minutes, [Row(*row) for row in rows])


def table(parts: Sequence[Part]) -> str:
    """Return a Markdown table of all rows."""
    lines = ["| part | what | measured | must | held |", "|---|---|---|---|---|"]
    lines += [
        f"| {part.name} | {row.what} | {row.measured} | {row.must} | {'yes' if row.held else '**no**'} |"
        for part in parts
        for row in part.rows
    ]
    return "\n".join(lines)


def write_page(parts: Sequence[Part], commit: str, scale: float) -> None:
    """Write the table between the markers of PAGE."""
    day = datetime.now(UTC).date().isoformat()
    minutes = sum(part.minutes for part in parts)
    length = "" if scale == 1 else f", at {scale:g} of the full length"
    about = f"{day}, commit {commit}, {os.cpu_count()} cores, {minutes:.0f} minutes{length}."
    page = replace_part(PAGE.read_text(encoding="utf-8"), "make hold", f"{about}\n\n{table(parts)}\n")
    PAGE.write_text(page, encoding="utf-8")


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"
