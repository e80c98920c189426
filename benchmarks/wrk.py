"""Sends HTTP requests with wrk, a client in C. It takes a few hundredths of a core, so it is not the limit."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from load_tests.verdict import LoadError

SCRIPT: Final = Path(__file__).with_name("wrk.lua")
TIMEOUT_SECONDS: Final = 120
"""Time for an answer. The default of wrk, 2 seconds, is too short for slow peers."""
FAULTS: Final = ("connect", "read", "write", "timeout", "status")


class Sample(NamedTuple):
    """Result of one measurement."""

    rate: float
    """Good answers a second."""
    p50: float = float("nan")
    """Milliseconds from a request to its answer; NaN for a loop, which has no requests."""
    p99: float = float("nan")
    client: float = 0
    """Cores that the client used."""


def check_installed() -> None:
    """Raise LoadError if wrk is missing."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not installed: apt-get install wrk")


def load(url: str, requests: Path, connections: int, seconds: int) -> Sample:
    """Send the requests in the folder one after another over each connection. Raises LoadError."""
    count = len(list(requests.iterdir()))
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{TIMEOUT_SECONDS}s", "--script", str(SCRIPT), url, "--", str(requests), str(count)]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    after = os.times()
    used = sum(after[2:4]) - sum(before[2:4])  # CPU time of ended child processes; only wrk ended meanwhile
    return parse(done.stderr + done.stdout, url)._replace(client=used / seconds)


def parse(output: str, url: str) -> Sample:
    """Read the script's last line. Raises LoadError if it is missing, or if an answer was not good."""
    try:
        result: dict[str, int] = json.loads(output.strip().splitlines()[-1])
        faults = {name: result[name] for name in FAULTS if result[name]}
    except (IndexError, KeyError, ValueError):
        raise LoadError(f"{url}: expected wrk's result, got {output.strip()[-200:]!r}") from None
    if faults:
        raise LoadError(f"{url}: expected good answers alone, got {result['requests']} answers and the faults {faults}")
    return Sample(1e6 * result["requests"] / result["microseconds"], result["p50"] / 1000, result["p99"] / 1000)
