"""Drives HTTP by wrk, a client in C that takes a few hundredths of a core, so that it isn't the limit."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from load_tests.verdict import LoadError

SCRIPT: Final = Path(__file__).with_name("wrk.lua")
TIMEOUT_SECONDS: Final = 120
"""wrk's own is 2 seconds, less than slow peers take."""
FAULTS: Final = ("connect", "read", "write", "timeout", "status")


class Sample(NamedTuple):
    """What one measurement says."""

    rate: float
    """Good answers a second."""
    p50: float = float("nan")
    """Milliseconds from a request to its answer; not a number where nobody asked over a connection."""
    p99: float = float("nan")
    client: float = 0
    """Cores that the client took."""


def check_installed() -> None:
    """Raises LoadError."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not installed: apt-get install wrk")


def load(url: str, requests: Path, connections: int, seconds: int) -> Sample:
    """Each connection sends the requests of that folder one after another for so long. Raises LoadError."""
    count = len(list(requests.iterdir()))
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{TIMEOUT_SECONDS}s", "--script", str(SCRIPT), url, "--", str(requests), str(count)]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    after = os.times()
    used = sum(after[2:4]) - sum(before[2:4])  # of children: wrk alone has ended meanwhile
    return parse(done.stdout, url)._replace(client=used / seconds)


def parse(output: str, url: str) -> Sample:
    """The line that the script wrote last. Raises LoadError where it is missing, or where an answer was not good."""
    try:
        result: dict[str, int] = json.loads(output.strip().splitlines()[-1])
        faults = {name: result[name] for name in FAULTS if result[name]}
    except (IndexError, KeyError, ValueError):
        raise LoadError(f"{url}: expected wrk's result, got {output.strip()[-200:]!r}") from None
    if faults:
        raise LoadError(f"{url}: expected good answers alone, got {result['requests']} answers and the faults {faults}")
    return Sample(1e6 * result["requests"] / result["microseconds"], result["p50"] / 1000, result["p99"] / 1000)
