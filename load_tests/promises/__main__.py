"""`python -m load_tests.promises`: runs every part and writes docs/reference/reliability.md. PASS or FAIL.

Serves the newest model of the store, with a new server for each part. An interrupted run continues after its last
complete part.
"""

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from load_tests.promises import faults, fuzz, greedy_clients, identity, privacy, refusals, results, soak
from load_tests.server import served_commit
from load_tests.verdict import command, conclude

PARTS: Final[Mapping[str, Callable[[float], Awaitable[list[results.Row]]]]] = {
    "privacy": privacy.measure,
    "refusals": refusals.measure,
    "faults": faults.measure,
    "greedy clients": greedy_clients.measure,
    "fuzz": fuzz.measure,
    "identity": identity.measure,
    "soak": soak.measure,
}


@command("hold", interrupted="interrupted; the same command continues after the last complete part")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 all held, 2 no verdict, 3 a promise did not hold, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.promises", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="run this part alone; may be repeated")
    parser.add_argument("--scale", type=float, default=1, help="share of the full length (default 1: about 30 minutes)")
    parser.add_argument("--anew", action="store_true", help="repeat parts that have a result for this commit")
    options = parser.parse_args(arguments)
    commit = served_commit()
    if options.anew:
        shutil.rmtree(results.FOLDER, ignore_errors=True)
    parts = []
    for name in options.only or PARTS:
        part = results.kept(name, commit, options.scale)
        if part is None:
            print(f"{name} ...", flush=True)
            started = time.monotonic()
            found = asyncio.run(PARTS[name](options.scale))
            part = results.Part(name, (time.monotonic() - started) / 60, found)
            results.keep(part, commit, options.scale)
        parts.append(part)
        print(results.table([part]), flush=True)
    if not options.only:
        results.write_page(parts, commit, options.scale)
        print(f"{results.PAGE} has the table")
    return conclude([f"{part.name}: {row.what}" for part in parts for row in part.rows if not row.held])


if __name__ == "__main__":
    sys.exit(main())
