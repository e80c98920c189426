"""`python -m load_tests.hold`: runs every part and writes docs/reference/reliability.md. PASS or FAIL.

Serves the newest model of the store, for each part anew. A run that was ended goes on after its last whole part.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from load_tests.hold import faults, fuzz, greedy, identity, privacy, refusals, rows, soak
from load_tests.run import BAD_INPUT, MISSED
from load_tests.server import ROOT, LoadError

PARTS: Final[Mapping[str, Callable[[float], Awaitable[list[rows.Row]]]]] = {
    "privacy": privacy.measure,
    "refusals": refusals.measure,
    "faults": faults.measure,
    "greedy clients": greedy.measure,
    "fuzz": fuzz.measure,
    "identity": identity.measure,
    "soak": soak.measure,
}
INTERRUPTED: Final = 130


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all held, 2 no verdict, 3 something did not hold, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.hold", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be repeated")
    parser.add_argument("--scale", type=float, default=1, help="share of the full length (default 1: about 45 minutes)")
    parser.add_argument("--anew", action="store_true", help="run parts again that this commit has a result of")
    options = parser.parse_args(arguments)
    commit = _commit()
    if options.anew:
        shutil.rmtree(rows.RESULTS, ignore_errors=True)
    parts = []
    try:
        for name in options.only or PARTS:
            part = rows.kept(name, commit, options.scale)
            if part is None:
                print(f"{name} ...", flush=True)
                started = time.monotonic()
                found = asyncio.run(PARTS[name](options.scale))
                part = rows.Part(name, (time.monotonic() - started) / 60, found)
                rows.keep(part, commit, options.scale)
            parts.append(part)
            print(rows.table([part]), flush=True)
    except LoadError as error:
        print(f"hold: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("hold: interrupted; the same command goes on after the last whole part", file=sys.stderr)
        return INTERRUPTED
    if not options.only:
        rows.write_page(parts, commit, options.scale)
        print(f"{rows.PAGE} has the table")
    held = all(row.held for part in parts for row in part.rows)
    print("PASS" if held else "FAIL")
    return 0 if held else MISSED


def _commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
