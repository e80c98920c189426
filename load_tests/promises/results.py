"""One promise and what a run showed of it."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import yaml

from load_tests.server import ROOT, Server

PAGE: Final = ROOT / "docs" / "reference" / "reliability.md"
FOLDER: Final = ROOT / "build" / "hold"
"""One file a part, so that a run that was ended goes on after the last whole part."""
HUNG_SECONDS: Final = 60
"""A request without an answer for so long hangs: the service's own limit is half of it."""


class Row(NamedTuple):
    what: str
    measured: str
    must: str
    held: bool


class Part(NamedTuple):
    name: str
    minutes: float
    rows: Sequence[Row]


def workers(server: Server) -> dict[int, psutil.Process]:
    """The server's worker processes by id."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return {child.pid: child for child in children if "--worker-id" in _command(child)}


def readers(server: Server) -> list[psutil.Process]:
    """The processes that read DICOM files and large pictures for the workers."""
    return [child for worker in workers(server).values() for child in worker.children()]


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def memory_row(memory: Sequence[float]) -> Row:
    """The most that all processes of a server took, and what a pod grants."""
    manifest = yaml.safe_load((ROOT / "k8s/base/deployment.yaml").read_text(encoding="utf-8"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    mebibytes = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    most = max(memory)
    bound = f"{megabytes(mebibytes << 20)}, the pod's limit"
    return Row("memory at most, all processes", megabytes(most), bound, most <= mebibytes << 20)


def keep(part: Part, commit: str, scale: float) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"commit": commit, "scale": scale, **part._asdict()})
    unfinished = _file(part.name).with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(_file(part.name))


def kept(name: str, commit: str, scale: float) -> Part | None:
    """The part's result of an earlier run of the same code and length; None if there is none."""
    try:
        found = json.loads(_file(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if (found.pop("commit"), found.pop("scale")) != (commit, scale):
        return None
    return Part(found["name"], found["minutes"], [Row(*row) for row in found["rows"]])


def table(parts: Sequence[Part]) -> str:
    """A Markdown table with a line for each row."""
    lines = ["| part | what | measured | must | held |", "|---|---|---|---|---|"]
    lines += [
        f"| {part.name} | {row.what} | {row.measured} | {row.must} | {'yes' if row.held else '**no**'} |"
        for part in parts
        for row in part.rows
    ]
    return "\n".join(lines)


def write_page(parts: Sequence[Part], commit: str, scale: float) -> None:
    """Put the table between the page's markers. The rest of the page is written by hand."""
    begin, end = (f"<!-- {word} of what `make hold` writes -->\n" for word in ("begin", "end"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    day = datetime.now(UTC).date().isoformat()
    minutes = sum(part.minutes for part in parts)
    length = "" if scale == 1 else f", at {scale:g} of the full length"
    about = f"{day}, commit {commit}, {os.cpu_count()} cores, {minutes:.0f} minutes{length}."
    PAGE.write_text(f"{before}{begin}{about}\n\n{table(parts)}\n{end}{after}", encoding="utf-8")


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
