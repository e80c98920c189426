"""`python -m load_tests.run`: loads the service with Locust and says PASS or FAIL by the bounds in slo.yaml.

Without --host it serves the newest model of the store on free ports, and stops that server at the end.
"""

import argparse
import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from chestct.card import Frozen

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
OUTPUT: Final = ROOT / "build" / "load"
READY_SECONDS: Final = 60
STOP_SECONDS: Final = 20

BAD_INPUT: Final = 2
MISSED: Final = 3


class Bound(Frozen):
    """What one row of Locust's table is held to."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)]
    max_p99_ms: Annotated[float, Field(gt=0)]
    min_requests_per_second: Annotated[float, Field(ge=0)]


class Address(NamedTuple):
    http: str
    """URL."""
    grpc: str
    """host:port."""


class LoadError(Exception):
    """No verdict is possible; the message says what to do."""


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


@contextlib.contextmanager
def serve() -> Iterator[Address]:
    """The real server on free ports of loopback, ready. Raises LoadError where it does not come up."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    http, grpc = _free_ports(2)
    log = OUTPUT / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(http)],
            cwd=ROOT,
            env={**os.environ, "CHESTCT_GRPC_PORT": str(grpc)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = Address(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")
        _wait_until_ready(server, address, log)
        yield address
    finally:
        _stop_group(server)


def run_locust(address: Address, users: int, seconds: int) -> Path:
    """Load the service, with Locust's table on standard output; returns the CSV of its statistics."""
    stats = OUTPUT / "locust_stats.csv"
    stats.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py"), "--host", address.http]
    command += ["--headless", "--only-summary", "--users", str(users), "--spawn-rate", str(users)]
    command += ["--run-time", f"{seconds}s", "--stop-timeout", "10", "--csv", str(OUTPUT / "locust")]
    command += ["--exit-code-on-error", "0"]  # the bounds decide
    environment = {**os.environ, "LOAD_GRPC": address.grpc, "PYTHONPATH": str(ROOT)}
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
        with contextlib.nullcontext(Address(options.host, options.grpc)) if options.host else serve() as address:
            misses = find_misses(run_locust(address, options.users, options.seconds), bounds)
    except LoadError as error:
        print(f"load: {error}", file=sys.stderr)
        return BAD_INPUT
    for miss in misses:
        print(f"FAIL  {miss}")
    print("FAIL" if misses else f"PASS  every bound of {options.slo.name} held")
    return MISSED if misses else 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(server: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"{address.http}/readyz", timeout=1).status == 200:
                return
        time.sleep(0.1)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise LoadError(f"the server is not ready; {log} ends with: {''.join(last)}")


def _stop_group(server: subprocess.Popen[bytes]) -> None:
    """BentoML's supervisor and its workers share a process group."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
            return


if __name__ == "__main__":
    sys.exit(main())
