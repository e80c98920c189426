"""`python -m load_tests.rollout`: measures what a roll-out, a kill and a freeze cost. PASS or FAIL.

Runs three replicas of the image behind HAProxy, as the manifests say, and writes docs/reference/rollouts.md. An
interrupted command continues after its last complete event.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

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
EVENTS: Final = 4
"""Events of a run."""


class Image(NamedTuple):
    """The image that is measured."""

    name: str
    after: str
    """Name of the image that replaces it."""
    id: str
    tool: str
    """docker or podman."""


class Stage(NamedTuple):
    """Where a run takes place."""

    places: list[Slot]
    """For REPLICAS replicas, and one more for the surge."""
    balancer: Balancer
    server: Server
    """The balancer as the clients see it."""
    folder: Path
    """For the replicas' volumes."""


@contextlib.contextmanager
def set_up() -> Iterator[Stage]:
    """Start a balancer in front of free places. Raises LoadError."""
    with tempfile.TemporaryDirectory(prefix="rollout-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the containers' user reads its volumes through it
        places = slots(REPLICAS + 1)
        front = Ports(*free_ports(2))
        with balance(folder, front, [slot.ports for slot in places], pod().probe("readinessProbe")) as balancer:
            log = folder / "haproxy.log"
            server = Server(f"http://127.0.0.1:{front.http}", f"127.0.0.1:{front.grpc}", balancer.process, log)
            yield Stage(places, balancer, server, folder)


@contextlib.asynccontextmanager
async def replicas_of(image: Image, stage: Stage) -> AsyncIterator[Replicas]:
    """Start REPLICAS replicas."""
    replicas = Replicas(image.tool, pod(), stage.places, stage.balancer, stage.folder)
    try:
        await asyncio.gather(*(replicas.start(slot, image.name) for slot in stage.places[:REPLICAS]))
        yield replicas
    finally:
        await replicas.remove_all()


async def complete(number: int, measured: results.Run | None, image: Image, stage: Stage) -> results.Run:
    """Measure each event of the run that is not in `measured`, at the same rate. The first time, find the rate."""
    async with replicas_of(image, stage) as replicas:
        if measured is None:
            async with traffic.Clients(stage.server, events.DEADLINE) as clients:
                measured = results.Run(SHARE * await traffic.capacity(clients, CAPACITY_SECONDS), [])
        named = {
            "the next version": events.replace_each(replicas, image.after),
            "undo": events.replace_each(replicas, image.name),
            "a replica is killed": events.kill_one(replicas),
            "a replica is frozen": events.freeze_one(replicas),
        }
        for what, event in named.items():
            if what not in {row.what for row in measured.rows}:
                row = await events.measure(what, event, stage.server, stage.balancer, measured.rate)
                rows = sorted([*measured.rows, row], key=lambda one: list(named).index(one.what))
                measured = results.Run(measured.rate, rows)
                results.keep(number, measured, image.id)
                print(results.line(number, row), flush=True)
    return measured


@command("rollout", interrupted="interrupted; the same command continues after the last complete event")
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
    image = Image(options.image, options.next or options.image, about["Id"], options.tool)
    runs = []
    for number in range(1, options.runs + 1):
        run = results.kept(number, image.id)
        if run is None or len(run.rows) < EVENTS:
            print(f"run {number} ...", flush=True)
            with set_up() as stage:
                run = traffic.run(complete(number, run, image, stage))
        runs.append(run)
    print(results.table(runs), flush=True)
    results.write_page(runs, image.id.removeprefix("sha256:"), about["Config"]["Labels"][REVISION][:12])
    print(f"{results.PAGE} has the table")
    rows = ((number, row) for number, run in enumerate(runs, 1) for row in run.rows)
    return conclude([f"run {number}, {row.what}: expected {row.must}" for number, row in rows if not row.held])


if __name__ == "__main__":
    sys.exit(main())
