"""`python -m benchmarks.startup`: how long the service takes from its command to its first answer, and why.

Starts the service several times. The workers' log says how long each phase took, as passed seconds and as CPU time.
CPU time matters where other programs use the cores. Then `PYTHONPROFILEIMPORTTIME` says what each import costs, of
BentoML's supervisor and of a worker. It writes docs/reference/startup.md and its picture.
"""

import argparse
import datetime
import json
import math
import os
import re
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from matplotlib.figure import Figure

from benchmarks import footprint
from chestct import store
from load_tests.images import phantom
from load_tests.server import OUTPUT, ROOT, Server, serve
from load_tests.verdict import LoadError, command
from serving.settings import Settings, SettingsError

DOCUMENT: Final = ROOT / "docs" / "reference" / "startup.md"
STARTS: Final = 5
IMPORT_STARTS: Final = 3
SHOWN: Final = 20
"""Packages in the table of imports. The rest is summed up."""
SUPERVISOR: Final = "supervisor, until it starts the workers"
PROBE: Final = "until a probe sees it"
FIRST_ANSWER: Final = "first answer"
OTHER_GRAPHS: Final = "other graphs"
"""The phase that comes after the service is ready."""
_LOGGER: Final = "serving.telemetry.start_times"
_PHASE: Final = re.compile(r"([^,():]+?) ([\d.]+) \(([\d.]+)\)")
_IMPORT: Final = re.compile(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$")
_FIRST_IMPORT: Final = "import time: self [us]"
"""Start of the line that each process writes first."""


class Phase(NamedTuple):
    seconds: float
    cpu: float
    """Seconds of all threads of the process. NaN if it was not measured."""


Start = dict[str, Phase]
"""The phases of one start, in order."""


class Imported(NamedTuple):
    """What a process imports of one package."""

    milliseconds: float
    modules: int


def phases(message: str) -> Start:
    """Parse a line of serving.telemetry.start_times. Raises LoadError if it is none."""
    _, colon, text = message.partition("): ")
    found = _PHASE.findall(text) if colon else []
    if not found:
        raise LoadError(f"no phases in {message!r}")
    return {name.strip(): Phase(float(seconds), float(cpu)) for name, seconds, cpu in found}


def worker_phases(log: Iterable[str]) -> Start:
    """Return the phases of the worker that was complete last. Raises LoadError if none was."""
    lines = [json.loads(line)["message"] for line in log if f'"{_LOGGER}"' in line]
    complete = [line for line in lines if line.startswith("complete after")]
    if not complete:
        raise LoadError("no worker has said in its log that it is complete")
    return phases(complete[-1])


def imports(lines: Iterable[str]) -> list[dict[str, int]]:
    """Return the microseconds of each module by itself, for each process that wrote its imports among these lines."""
    processes: list[dict[str, int]] = []
    for line in lines:
        if line.startswith(_FIRST_IMPORT):
            processes.append({})
        elif processes and (found := _IMPORT.match(line.rstrip())):
            processes[-1].setdefault(found[2], int(found[1]))
    return processes


def by_package(runs: Sequence[Mapping[str, int]]) -> dict[str, Imported]:
    """Sum up the modules of each package. Each module counts with the fastest of the runs."""
    fastest: dict[str, int] = {}
    for run in runs:
        for module, microseconds in run.items():
            fastest[module] = min(microseconds, fastest.get(module, microseconds))
    packages: dict[str, list[int]] = defaultdict(list)
    for module, microseconds in fastest.items():
        packages[module.partition(".")[0]].append(microseconds)
    return {name: Imported(sum(each) / 1000, len(each)) for name, each in packages.items()}


def measure_start() -> tuple[Start, float]:
    """Start the service once. Returns its phases and the MB of its largest worker. Raises LoadError."""
    began, wall = time.monotonic(), time.time()
    log = OUTPUT / "startup.log"
    with serve(environment=os.environ, log=log) as server:
        ready = time.monotonic() - began
        supervisor = server.processes()[0].cpu_times()
        answered = _first_answer(server)
        spawned = min(worker.create_time() for worker in server.workers().values()) - wall
        complete = _when_complete(server)
        memory = footprint.worker_memory(server)
    own = {name: phase for name, phase in complete.items() if name != OTHER_GRAPHS}
    nothing = float("nan")
    return {
        SUPERVISOR: Phase(spawned, supervisor.user + supervisor.system),
        **own,
        PROBE: Phase(max(0.0, ready - spawned - sum(phase.seconds for phase in own.values())), nothing),
        FIRST_ANSWER: Phase(answered, nothing),
        OTHER_GRAPHS: complete[OTHER_GRAPHS],
    }, memory


def measure_imports() -> list[dict[str, int]]:
    """Start the service with one worker once. Returns the modules of the supervisor and of the worker."""
    log = OUTPUT / "startup-imports.log"
    with serve(environment={**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "CHESTCT_WORKERS": "1"}, log=log):
        pass
    found = imports(log.read_text(encoding="utf-8", errors="replace").splitlines())
    if len(found) < 2:
        raise LoadError(f"{log} does not show the imports of two processes")
    return found[:2]


def document(
    starts: Sequence[Start],
    memory: Sequence[float],
    packages: Sequence[Mapping[str, Imported]],
    machine: dict[str, str],
) -> str:
    """Return the page. `packages`: those of the supervisor and of a worker."""
    today = datetime.datetime.now(datetime.UTC).date()
    whole = [
        sum(phase.seconds for name, phase in one.items() if name not in (FIRST_ANSWER, OTHER_GRAPHS)) for one in starts
    ]
    supervisor, worker = packages
    order = sorted({*supervisor, *worker}, key=lambda name: -_sum(name, supervisor, worker))
    rest = order[SHOWN:]
    lines = [
        "# Start",
        "",
        f"Written by `python -m benchmarks.startup` on {today}. Research and education only. Not a medical device.",
        "",
        f"Ready after **{median(whole):.1f} s** ({min(whole):.1f} to {max(whole):.1f}, {len(starts)} starts)."
        f" When all graphs are compiled, the largest worker takes **{median(memory):.0f} MB**: its own pages and its"
        " share of common ones (PSS).",
        "",
        "![Phases of the start](startup.png)",
        "",
        "Medians. CPU time is that of all threads of the process. It changes little if other programs use the cores.",
        "",
        "| phase | seconds | CPU seconds |",
        "|---|---:|---:|",
        *(f"| {name} | {_median(starts, name, 0)} | {_median(starts, name, 1)} |" for name in starts[0]),
        "",
        f"The worker compiles the {OTHER_GRAPHS} after it is ready, while it answers. Until then a batch runs image by"
        " image. A graph that can't be compiled ends the worker, and the service with it.",
        "",
        "## What each import costs",
        "",
        "Milliseconds that the modules of a package take by themselves (`-X importtime`): the fastest of"
        f" {IMPORT_STARTS} starts for each module. The measurement itself takes some of it.",
        "",
        "| package | supervisor, ms | modules | worker, ms | modules |",
        "|---|---:|---:|---:|---:|",
        *(f"| {name} | {_cells(supervisor.get(name))} | {_cells(worker.get(name))} |" for name in order[:SHOWN]),
        f"| {len(rest)} others | {_cells(_total(supervisor, rest))} | {_cells(_total(worker, rest))} |",
        f"| **all** | {_cells(_total(supervisor, order))} | {_cells(_total(worker, order))} |",
        "",
        *footprint.machine_table(machine),
    ]
    return "\n".join(lines) + "\n"


def draw(starts: Sequence[Start], path: Path) -> None:
    """Draw the median phases, one bar after the other."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    names = list(starts[0])
    left = 0.0
    for place, name in enumerate(names):
        seconds = median(one[name].seconds for one in starts)
        axes.barh(place, seconds, left=left, color="#8250df" if name == OTHER_GRAPHS else "#0969da")
        left += seconds
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the command")
    axes.set_title("From the command to the first answer, and to all graphs", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def _first_answer(server: Server) -> float:
    """Seconds that the first image takes."""
    request = urllib.request.Request(f"{server.url}/v1/predict", phantom(), {"Content-Type": "image/png"})
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return time.monotonic() - began


def _when_complete(server: Server) -> Start:
    """Wait until each worker is complete. Returns the phases of the last one. Raises LoadError."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = server.log.read_text(encoding="utf-8").splitlines()
        if sum(f'"{_LOGGER}"' in line and "complete after" in line for line in lines) >= len(server.workers()):
            return worker_phases(lines)
        time.sleep(0.1)
    raise LoadError(f"the workers are not complete; {server.log} says why")


def _median(starts: Sequence[Start], name: str, field: int) -> str:
    value = median(one[name][field] for one in starts)
    return "" if math.isnan(value) else f"{value:.2f}"


def _sum(name: str, *packages: Mapping[str, Imported]) -> float:
    return sum(each[name].milliseconds for each in packages if name in each)


def _total(packages: Mapping[str, Imported], names: Iterable[str]) -> Imported:
    found = [packages[name] for name in names if name in packages]
    return Imported(sum(one.milliseconds for one in found), sum(one.modules for one in found))


def _cells(imported: Imported | None) -> str:
    return " | " if imported is None else f"{imported.milliseconds:.0f} | {imported.modules}"


@command("startup", store.NoModel, SettingsError)
def main(arguments: list[str] | None = None) -> int:
    """Print the page, and write it with its picture. Return the exit code: 0, or 2 if nothing can be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--starts", type=int, default=STARTS, help="starts of the service (default %(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the page (default docs/reference/startup.md)")
    options = parser.parse_args(arguments)
    if options.starts < 1:
        raise LoadError("--starts: expected 1 or more")
    store.find(Settings.read().model)
    load = f"{os.getloadavg()[0]:.1f} processes wanted a core in the minute before the first start"
    starts, memory = zip(*(measure_start() for _ in range(options.starts)), strict=True)
    runs = [measure_imports() for _ in range(IMPORT_STARTS)]
    packages = [by_package(process) for process in zip(*runs, strict=True)]
    page = document(starts, memory, packages, {**footprint.describe_machine(), "other load": load})
    print(page, end="")
    options.document.write_text(page, encoding="utf-8")
    draw(starts, options.document.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
