"""`python -m load_tests.run`: loads the service with a Locust scenario. PASS or FAIL by slo.yaml.

Without --host it serves the newest model of the store on free ports, and stops that server at the end.
load_tests/shapes.py defines the scenarios. build/load/SCENARIO/report.html has the figures and curves.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from load_tests import check, shapes, traffic
from load_tests.server import OUTPUT, ROOT, Server, serve
from load_tests.verdict import LoadError, command, conclude

HERE: Final = Path(__file__).parent
REPORT: Final = "report.html"
MORE_SECONDS: Final = 400
"""Time for Locust to start and to receive its last answers."""


async def run_locust(
    folder: Path, http: str, grpc: str, users: int, seconds: int, server: Server | None
) -> list[float]:
    """Load the service with the scenario that the folder is named for. Locust prints its table.

    Leaves Locust's CSV files and REPORT in the folder. Returns the bytes that `server` has written, a value a second,
    or an empty list without a server. Raises LoadError if Locust fails or does not end in time.
    """
    command = ["-m", "locust", "--locustfile", str(HERE / "locustfile.py"), "--host", http]
    command += ["--headless", "--only-summary", "--loglevel", "WARNING", "--users", str(users)]
    command += ["--run-time", f"{seconds}s", "--stop-timeout", "10"]
    command += ["--csv", str(folder / check.CSV), "--html", str(folder / REPORT)]
    command += ["--exit-code-on-error", "0"]  # the bounds of slo.yaml decide
    environment = {**os.environ, "LOAD_GRPC": grpc, "LOAD_SCENARIO": folder.name, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, env=environment)
    try:
        with traffic.each_second(server.written_memory) if server else contextlib.nullcontext([]) as memory:
            code = await asyncio.wait_for(process.wait(), seconds + MORE_SECONDS)
    except TimeoutError:
        raise LoadError(f"Locust has not ended {MORE_SECONDS} s after its time") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if code != 0:  # the figures do not cover the whole time
        raise LoadError(f"Locust ended with the code {code}, expected 0 after {seconds} s")
    return memory


@command("load")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 all bounds held, 2 no verdict, 3 a bound was missed."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.run", description=__doc__)
    parser.add_argument("--scenario", default="steady", help=f"{', '.join(shapes.SCENARIOS)} (default %(default)s)")
    parser.add_argument("--users", type=int, help="connections at most (default: the scenario's)")
    parser.add_argument("--seconds", type=int, help="length of the test (default: the scenario's)")
    parser.add_argument("--host", help="URL of a running service to load, instead of a server of its own")
    parser.add_argument("--grpc", default="127.0.0.1:3001", help="gRPC address of that service (default %(default)s)")
    parser.add_argument("--slo", type=Path, default=HERE / "slo.yaml", help="the bounds (default load_tests/slo.yaml)")
    options = parser.parse_args(arguments)
    scenario = shapes.find(options.scenario)
    users, seconds = scenario.size(options.users, options.seconds)
    objectives = check.read_objectives(options.slo, options.scenario)
    if options.host and objectives.max_memory_growth is not None:
        raise LoadError(f"{options.scenario} holds the memory of a server of its own to a bound; expected no --host")
    print(f"{options.scenario}, {users} users, {seconds} s: {scenario.words}", flush=True)
    folder = OUTPUT / options.scenario
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        server = None if options.host else stack.enter_context(serve())
        http, grpc = (server.url, server.grpc) if server else (options.host, options.grpc)
        memory = traffic.run(run_locust(folder, http, grpc, users, seconds, server))
    misses = check.judge(check.read_rows(folder), memory, objectives)
    if memory:
        before, after = check.thirds(check.warm(memory))
        print(f"memory of the warm server: {before:.0f} MB in the first third of the time, {after:.0f} MB in the last")
    print(f"{folder / REPORT} has the figures and curves")
    return conclude(misses, f"PASS  every bound of {options.slo.name} held")


if __name__ == "__main__":
    sys.exit(main())
