"""`python -m load_tests.run`: loads the service with Locust and says PASS or FAIL by the bounds in slo.yaml.

Without --host it serves the newest model of the store on free ports, and stops that server at the end.
"""

import argparse
import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from chestct.card import Frozen
from load_tests.server import OUTPUT, ROOT, LoadError, serve

HERE: Final = Path(__file__).parent

BAD_INPUT: Final = 2
MISSED: Final = 3


class Bound(Frozen):
    """What one row of Locust's table is held to."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)]
    max_p99_ms: Annotated[float, Field(gt=0)]
    min_requests_per_second: Annotated[float, Field(ge=0)]


def read_bounds(path: Path) -> dict[str, Bound]:
    """By the name of the row. Raises LoadError."""
    try:
        return TypeAdapter(dict[str, Bound]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise LoadError(f"{path}: expected bounds by request name: {' '.join(str(error).split())}") from error


def find_misses(stats: Path, bounds: dict[str, Bound]) -> list[str]:
    """Each bound that the CSV of Locust's statistics misses, in words; an absent row is no request."""
    if not stats.is_file():
        raise LoadError(f"{stats}: Locust left no statistics; its own message above says why")
    with stats.open(newline="", encoding="utf-8") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    misses = []
    for name, bound in bounds.items():
        row = rows.get(name)
        if row is None or not int(row["Request Count"]):
            if bound.min_requests_per_second:
                misses.append(f"{name}: no request was made")
            continue
        error_rate = int(row["Failure Count"]) / int(row["Request Count"])
        p99 = float(row["99%"])
        rate = float(row["Requests/s"])
        if error_rate > bound.max_error_rate:
            misses.append(f"{name}: error rate {error_rate:.4f}, expected at most {bound.max_error_rate}")
        if p99 > bound.max_p99_ms:
            misses.append(f"{name}: p99 {p99:.0f} ms, expected at most {bound.max_p99_ms:.0f} ms")
        if rate < bound.min_requests_per_second:
            misses.append(f"{name}: {rate:.1f} requests/s, expected at least {bound.min_requests_per_second}")
    return misses


def run_locust(http: str, grpc: str, users: int, seconds: int) -> Path:
    """Load the service, with Locust's table on standard output; returns the CSV of its statistics."""
    stats = OUTPUT / "locust_stats.csv"
    stats.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py"), "--host", http]
    command += ["--headless", "--only-summary", "--users", str(users), "--spawn-rate", str(users)]
    command += ["--run-time", f"{seconds}s", "--stop-timeout", "10", "--csv", str(OUTPUT / "locust")]
    command += ["--exit-code-on-error", "0"]  # the bounds decide
    environment = {**os.environ, "LOAD_GRPC": grpc, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds + 120, check=False)
    return stats


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all bounds held, 2 no verdict, 3 a bound was missed."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.run", description=__doc__)
    parser.add_argument("--users", type=int, default=8, help="connections, half of each protocol (default 8)")
    parser.add_argument("--seconds", type=int, default=30, help="how long (default 30)")
    parser.add_argument("--host", help="URL of a running service instead of one of its own")
    parser.add_argument("--grpc", default="127.0.0.1:3001", help="gRPC address of that service (default %(default)s)")
    parser.add_argument("--slo", type=Path, default=HERE / "slo.yaml", help="the bounds (default load_tests/slo.yaml)")
    options = parser.parse_args(arguments)
    try:
        bounds = read_bounds(options.slo)
        with contextlib.ExitStack() as stack:
            http, grpc = options.host, options.grpc
            if not http:
                server = stack.enter_context(serve())
                http, grpc = server.url, server.grpc
            misses = find_misses(run_locust(http, grpc, options.users, options.seconds), bounds)
    except LoadError as error:
        print(f"load: {error}", file=sys.stderr)
        return BAD_INPUT
    for miss in misses:
        print(f"FAIL  {miss}")
    print("FAIL" if misses else f"PASS  every bound of {options.slo.name} held")
    return MISSED if misses else 0


if __name__ == "__main__":
    sys.exit(main())
