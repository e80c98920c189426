"""`python -m benchmarks.steps`: what each step of a request takes of the event loop's thread, in microseconds of CPU.

The service's parts run in one process, with an engine that answers at once. Each measurement adds a part to those of
the one before, and a step is the difference. So the steps add up to the whole. The measurements take turns. Other load
on the machine matters little, because only the CPU time of one thread counts. It writes docs/reference/steps.md.
"""

import argparse
import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.footprint import describe_machine, machine_table
from benchmarks.steps.process import Table, measure
from chestct import store
from load_tests.server import ROOT
from load_tests.verdict import LoadError, command
from serving.settings import Settings, SettingsError

DOCUMENT: Final = ROOT / "docs" / "reference" / "steps.md"
ROUNDS: Final = 300
"""Turns of each measurement."""


def document(table: Table, machine: Mapping[str, str], rounds: int) -> str:
    """Return the page."""
    steps = list(dict.fromkeys(step for kind in table.values() for step in kind))
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# The steps of a request",
        "",
        f"Written by `python -m benchmarks.steps` on {today}. Research and education only. Not a medical device.",
        "",
        "Microseconds of CPU time an image in the thread of the event loop. This thread does everything but decoding"
        " and the arithmetic of the engine, which have threads of their own. Here the engine answers at once. Sixteen"
        f" images are in progress at a time, and each figure comes from medians of {rounds} turns.",
        "",
        f"| step | {' | '.join(table)} |",
        f"|---|{'---:|' * len(table)}",
        *(f"| {step} | {' | '.join(_cell(kind.get(step)) for kind in table.values())} |" for step in steps),
        f"| **whole** | {' | '.join(f'**{sum(kind.values()):.0f}**' for kind in table.values())} |",
        "",
        *machine_table(machine),
    ]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


@command("steps", store.NoModel, SettingsError)
def main(arguments: list[str] | None = None) -> int:
    """Print the page, and write it. Return the exit code: 0, or 2 if there is nothing to measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each measurement (default %(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the page (default docs/reference/steps.md)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise LoadError("--rounds: expected 1 or more")
    card = store.find(Settings.read().model).read_card()
    page = document(measure(card, options.rounds), describe_machine(), options.rounds)
    print(page, end="")
    options.document.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
