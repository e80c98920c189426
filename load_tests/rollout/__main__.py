"""`python -m load_tests.rollout`: measures what a roll-out, a kill and a freeze cost. PASS or FAIL.

Runs three replicas of the image behind HAProxy, as the manifests say, and writes docs/reference/rollouts.md. An
interrupted command continues after its last complete run.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from image.pod import pod
from load_tests import traffic
from load_tests.rollout import events, results
from load_tests.rollout.balancer import Balancer, Ports, balance
from load_tests.rollout.replicas import Replicas, Slot, run_tool, slots
from load_tests.server import Server, free_ports
from load_tests.verdict import LoadError, command, conclude

REPLICAS: Final = 3
SHARE: Final = 0.6
"""Load, as a share of the capacity."""
CAPACITY_SECONDS: Final = 15
REVISION: Final = "org.opencontainers.image.revision"


@contextlib.asynccontextmanager
async def replicas_of(
    image: str, tool: str, places: list[Slot], balancer: Balancer, folder: Path
) -> AsyncIterator[Replicas]:
    """Start REPLICAS replicas. One place more is free, for the surge."""
    replicas = Replicas(tool, pod(), places, balancer, folder)
    try:
        await asyncio.gather(*(replicas.start(slot, image) for slot in places[:REPLICAS]))
        yield replicas
    finally:
        await replicas.remove_all()


async def run_once(
    image: str, after: str, tool: str, server: Server, places: list[Slot], balancer: Balancer, folder: Path
) -> results.Run:
    """Measure the capacity, then each event."""
    async with replicas_of(image, tool, places, balancer, folder) as replicas:
        async with traffic.Clients(server, events.DEADLINE) as clients:
            rate = SHARE * await traffic.capacity(clients, CAPACITY_SECONDS)
        rows = []
        for what, event in (
            ("the next version", events.replace_each(replicas, after)),
            ("undo", events.replace_each(replicas, image)),
            ("a replica is killed", events.kill_one(replicas)),
            ("a replica is frozen", events.freeze_one(replicas)),
        ):
            rows.append(await events.measure(what, event, server, balancer, rate))
            print(results.table([results.Run(rate, rows[-1:])]).splitlines()[-1], flush=True)
    return results.Run(rate, rows)


def measure(image: str, after: str, tool: str) -> results.Run:
    """Set up the balancer and measure one run. Raises LoadError."""
    probe = pod().probe("readinessProbe")
    with tempfile.TemporaryDirectory(prefix="rollout-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the containers' user reads its volumes through it
        places = slots(REPLICAS + 1)
        front = Ports(*free_ports(2))
        with balance(folder, front, [slot.ports for slot in places], probe) as balancer:
            server = Server(
                f"http://127.0.0.1:{front.http}", f"127.0.0.1:{front.grpc}", balancer.process, folder / "haproxy.log"
            )
            return traffic.run(run_once(image, after, tool, server, places, balancer, folder))  # type: ignore[no-any-return]


@command("rollout", interrupted="interrupted; the same command continues after the last complete run")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 all held, 2 no verdict, 3 a bound was missed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.rollout", description=__doc__)
    parser.add_argument("image", help="the image that make image has built")
    parser.add_argument("--next", help="the image that replaces it (default: the same image)")
    parser.add_argument("--tool", default="podman", help="docker or podman (default podman)")
    parser.add_argument("--runs", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--anew", action="store_true", help="repeat runs that have a result for this image")
    options = parser.parse_args(arguments)
    if shutil.which("kubectl") is None:
        raise LoadError("kubectl is needed; it renders the manifests")
    (about,) = json.loads(run_tool(options.tool, "image", "inspect", options.image))
    if options.anew:
        shutil.rmtree(results.FOLDER, ignore_errors=True)
    runs = []
    for number in range(1, options.runs + 1):
        run = results.kept(number, about["Id"])
        if run is None:
            print(f"run {number} ...", flush=True)
            run = measure(options.image, options.next or options.image, options.tool)
            results.keep(number, run, about["Id"])
        runs.append(run)
    print(results.table(runs), flush=True)
    results.write_page(runs, about["Id"].removeprefix("sha256:"), about["Config"]["Labels"][REVISION][:12])
    print(f"{results.PAGE} has the table")
    rows = ((number, row) for number, run in enumerate(runs, 1) for row in run.rows)
    return conclude([f"run {number}, {row.what}: expected {row.must}" for number, row in rows if not row.held])


if __name__ == "__main__":
    sys.exit(main())
