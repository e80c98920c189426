"""`python -m benchmarks.bench`: compares the service with the bare loop and with other people's servers in one table.

Each contender starts once, is warmed, and is then idle except in its turn. An idle process takes no CPU, and a process
that starts again each round would be measured cold. In each round every contender has a turn of some seconds, and those
that are compared come one after the other, so other load on the machine affects them alike. If all are measured, it
writes docs/reference/benchmarks.md and its picture.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from benchmarks import bench_report, figures, footprint, grpc_load, payloads, tail, wrk
from benchmarks.figures import Row
from benchmarks.loops import Loops
from benchmarks.payloads import Payloads, Post
from benchmarks.wrk import Sample
from chestct import store
from chestct.engine import choose_arithmetic
from load_tests import traffic
from load_tests.server import OUTPUT, ROOT, Server, free_ports, serve, start
from load_tests.verdict import MISSED, LoadError, command
from serving.settings import Settings, SettingsError

PEERS: Final = ("fastapi", "fastapi-engine", "litserve", "bentoml", "flask")
OURS: Final = ("http", "oip", "grpc-pixels", "grpc-pixels-8", "grpc-image")
PEER_PACKAGES: Final = ("fastapi", "litserve", "flask", "keras", "tensorflow-cpu", "tensorflow")
CONTENDERS: Final = (*OURS, "one-worker", "loops", *PEERS)
CONNECTIONS: Final = (1, 16, 64)
"""Connections over which the service is compared with a server with the same engine. The rest has one number."""
SHARE: Final = 0.7
"""Rate of the evenly spaced requests, as a share of the capacity over 16 connections."""
TOGETHER: Final = 8
"""Images in a call of `grpc-pixels-8`."""
SPEED_SECONDS: Final = 1
"""Length of the loop's measurements at full speed around each pair of benchmarks.tail."""
STARTS: Final = 3
WARM_UP: Final = 1
"""Seconds before each measurement that do not count."""
PATIENCE: Final = 3
"""Factor for the measuring time of Flask, which answers a few images a second."""
TOLERANCE: Final = 0.1
"""Allowed difference from a peer's probability, with the same weights in float32. Rounding moves it by hundredths."""
QUIET: Final = 0.05
"""A server is idle if it takes less of a core than this, over LOOK seconds."""
LOOK: Final = 0.4
QUIET_SECONDS: Final = 30
"""Time for a server to become idle."""

Measure = Callable[[], Sample]
Plan = dict[Row, Measure]
"""The measurements of each round."""


class Bench:
    """Starts the chosen contenders and measures them. As a context manager it ends what it started."""

    def __init__(self, only: frozenset[str], seconds: int, pairs: int) -> None:
        """Find the model and make the requests. Raises NoModel, SettingsError and LoadError."""
        wrk.check_installed()
        self.only: Final = only
        self.seconds: Final = seconds
        self.pairs: Final = pairs
        self.settings: Final = Settings.read()
        self.model: Final = store.find(self.settings.model)
        self.images: Final = payloads.usual_pictures(self.model)
        self.payloads: Final = Payloads(self.model.read_card(), self.images)
        self.results: Final[dict[Row, list[Sample]]] = {}
        self.footprint: Final[dict[str, list[float]]] = {}
        self.plan: Final[Plan] = {}
        self._stack: Final = contextlib.ExitStack()
        self._ours: Server | None = None
        self._loops: Loops | None = None
        self.wavered = 0

    def __enter__(self) -> "Bench":
        try:
            self._start()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, at)

    def run(self, rounds: int) -> None:
        """Measure all contenders in turn, `rounds` times, and print a line for each measurement. Raises LoadError."""
        rows = sorted(self.plan, key=turn)
        for number in range(1, rounds + 1):
            for row in rows:
                sample = self.plan[row]()
                self.results.setdefault(row, []).append(sample)
                print(f"{number}/{rounds}  {bench_report.line(row, [sample])}", flush=True)
        if self._ours and self._loops and Row("http", figures.CONNECTIONS) in self.results:
            self._compare_tails(self._ours, self._loops)
        if self._ours:
            self.footprint["memory"] = [footprint.worker_memory(self._ours)]

    def _start(self) -> None:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        answers = {}
        if self.only & {*OURS}:
            self.footprint["installed"] = [footprint.installed_size()]  # first, since it fails without strip
            self._ours = self._start_ours()
            answers["ours"] = self._ask(self._ours, self.payloads.raw("/v1/predict"))
            self._plan_ours(self._ours)
        if "one-worker" in self.only:
            one = {f"CHESTCT_{name}": "1" for name in ("WORKERS", "ENGINE_THREADS", "DECODE_THREADS")}
            log = OUTPUT / "one-worker.log"
            server = self._stack.enter_context(serve(environment={**os.environ, **one}, log=log))
            self._plan_http("one-worker", server, self.payloads.raw("/v1/predict"), figures.CONNECTIONS)
        if "loops" in self.only:
            self._plan_loops()
        for name in PEERS:
            if name in self.only:
                answers[name] = self._start_peer(name)
        answers.pop("flask", None)  # it has other weights
        check_same(answers)

    def _start_ours(self) -> Server:
        """Start the service several times, to measure how long that takes. The last one stays."""
        times = []
        for number in range(1, STARTS + 1):
            with contextlib.ExitStack() as stack:
                started = time.monotonic()
                server = stack.enter_context(serve(log=OUTPUT / "bench.log"))
                times.append(time.monotonic() - started)
                print(f"start {number}/{STARTS}: ready after {times[-1]:.1f} s", flush=True)
                if number == STARTS:
                    self._stack.push(stack.pop_all())
        self.footprint["ready"] = times
        return server

    def _start_peer(self, name: str) -> Any:
        """Start a peer and plan its measurements. Returns its first answer."""
        workers = str(self.settings.workers)
        (port,) = free_ports(1)
        kind, _, engine = name.partition("-")
        module = f"benchmarks.peers.{kind}_peer"
        commands = {
            "fastapi": ["uvicorn", f"{module}:app", "--port", str(port), "--workers", workers, "--no-access-log"],
            "bentoml": ["bentoml", "serve", f"{module}:Peer", "--host", "127.0.0.1", "--port", str(port)],
        }
        posts = {
            "fastapi": self.payloads.raw("/predict"),
            "litserve": self.payloads.form("/predict", "request"),  # LitServe names the field
        }
        environment = {**os.environ, "PEER_MODEL": str(self.model.folder), "PEER_WORKERS": workers}
        if engine or kind == "litserve":
            environment["PEER_ENGINE"] = "same"
        command = commands.get(kind, [module, str(port)])
        server = self._stack.enter_context(start(command, port, environment=environment, log=OUTPUT / f"{name}.log"))
        print(f"{name}: ready", flush=True)
        post = posts.get(kind) or self.payloads.form("/predict", "images")
        answer = self._ask(server, post)
        connections = CONNECTIONS if engine else (figures.CONNECTIONS,)
        self._plan_http(name, server, post, *connections, times=PATIENCE if kind == "flask" else 1)
        return answer[0] if isinstance(answer, list) else answer

    def _plan_ours(self, server: Server) -> None:
        if "http" in self.only:
            self._plan_http("http", server, self.payloads.raw("/v1/predict"), *CONNECTIONS)
        if "oip" in self.only:
            self._plan_http("oip", server, self.payloads.binary(), figures.CONNECTIONS)
        calls = {
            "grpc-pixels": (self.payloads.grpc_pixels(), 1),
            "grpc-pixels-8": (self.payloads.grpc_pixels_together(TOGETHER), TOGETHER),
            "grpc-image": (self.payloads.grpc_image(), 1),
        }
        for name, (requests, images) in calls.items():
            if name in self.only:
                self.plan[Row(name, figures.CONNECTIONS)] = functools.partial(self._grpc, server, requests, images)

    def _plan_http(self, name: str, server: Server, post: Post, *connections: int, times: int = 1) -> None:
        requests = self._folder / name
        post.write(server.url, requests)
        for count in connections:
            self.plan[Row(name, count)] = functools.partial(self._http, server, requests, count, times * self.seconds)

    def _plan_loops(self) -> None:
        files = [data for _, data in self.images]
        loops = self._stack.enter_context(Loops(self.model, files, self.settings))
        self._loops = loops
        for name, decoding in (("decode-infer", True), ("infer", False)):
            for batch in self.settings.batch_sizes:
                self.plan[Row(name, batch)] = functools.partial(
                    loops.measure, decoding=decoding, batch=batch, seconds=self.seconds
                )

    def _http(self, server: Server, requests: Path, connections: int, seconds: int) -> Sample:
        wrk.load(server.url, requests, connections, WARM_UP)  # a slow peer may answer nothing during the warm-up
        settle(server)
        sample = wrk.load(server.url, requests, connections, seconds)
        if not sample.rate:
            raise LoadError(f"{server.url}: no request was answered in {seconds} s; --seconds gives it longer")
        settle(server)
        return sample

    def _grpc(self, server: Server, requests: list[bytes], images: int) -> Sample:
        work = grpc_load.load(server.grpc, requests, figures.CONNECTIONS, WARM_UP, self.seconds, images=images)
        sample: Sample = traffic.run(work)
        settle(server)
        return sample

    def _compare_tails(self, server: Server, loops: Loops) -> None:
        rate = SHARE * float(np.median([sample.rate for sample in self.results[Row("http", figures.CONNECTIONS)]]))

        def service() -> Sample:
            sample: Sample = traffic.run(tail.by_the_clock(server, self.images, rate, self.seconds))
            settle(server)
            return sample

        compared = tail.compare(
            service,
            lambda: loops.by_the_clock(rate, self.seconds),
            lambda: loops.measure(decoding=True, batch=1, seconds=SPEED_SECONDS).rate,
            self.pairs,
        )
        self.results[Row("paced", 0)], self.results[Row("paced-loop", 0)] = compared.service, compared.loop
        self.wavered = compared.wavered

    def _ask(self, server: Server, post: Post) -> Any:
        """Send the first request and return the answer. Raises LoadError."""
        headers, body = post.bodies[0]
        request = urllib.request.Request(server.url + post.path, body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except (OSError, ValueError) as error:
            raise LoadError(f"{server.url}{post.path}: expected an answer, got {error}; see {server.log}") from error


def turn(row: Row) -> tuple[int, int]:
    """Sorts the rows of a round: by connections, then as in bench_report.WORDS.

    Loops come among those of figures.CONNECTIONS.
    """
    loop = row.contender in bench_report.LOOPS
    return figures.CONNECTIONS if loop else row.size, list(bench_report.WORDS).index(row.contender)


def check_same(answers: dict[str, Any]) -> None:
    """Raise LoadError unless the peers with the same weights give the service's probabilities."""
    if "ours" not in answers:
        return
    expected = answers["ours"]["probabilities"]
    for name, answer in answers.items():
        apart = max(abs(answer["probabilities"][label] - value) for label, value in expected.items())
        if apart > TOLERANCE:
            raise LoadError(f"{name}: expected the service's probabilities within {TOLERANCE}, got {apart:.3f} apart")


def settle(server: Server) -> None:
    """Wait until the server is idle. It may still process requests whose client is gone. Raises LoadError."""
    deadline = time.monotonic() + QUIET_SECONDS
    before = _cpu_seconds(server)
    while time.monotonic() < deadline:
        time.sleep(LOOK)
        now = _cpu_seconds(server)
        if now - before < LOOK * QUIET:
            return
        before = now
    raise LoadError(f"{server.url} is not idle {QUIET_SECONDS} s after its last request; see {server.log}")


def _cpu_seconds(server: Server) -> float:
    times = [process.cpu_times() for process in server.processes()]
    return sum(one.user + one.system for one in times)


def accept(report: bench_report.Report) -> None:
    """Store the ratios, for later runs to be compared with. Raises LoadError if the report is not reliable."""
    if doubts := bench_report.caution(report):
        raise LoadError(f"a run with {doubts} is not to be relied on, so its ratios are not accepted; run it again")
    figures.accept(report.values, report.machine)


@command("bench", store.NoModel, SettingsError)
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, 2 no result, 3 a ratio fell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=bench_report.LEAST_ROUNDS, help="turns of each contender (default %(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=tail.PAIRS, help="turns of the tail (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=" ".join(CONTENDERS))
    parser.add_argument("--accept", action="store_true", help="write the ratios to benchmarks/ratios.yaml")
    parser.add_argument("--folder", type=Path, help="of benchmarks.md (default docs/reference/ when all are measured)")
    options = parser.parse_args(arguments)
    if min(options.seconds, options.rounds, options.pairs) < 1:
        raise LoadError("--seconds, --rounds and --pairs: expected 1 or more")
    load = os.getloadavg()[0]
    machine = {**footprint.describe_machine(), "peers' packages": footprint.versions(PEER_PACKAGES)}
    with Bench(frozenset(options.only or CONTENDERS), options.seconds, options.pairs) as bench:
        bench.run(options.rounds)
    values = {**figures.compute(bench.results), **bench.footprint}
    arithmetic = choose_arithmetic(bench.model.read_card(), bench.settings.arithmetic)
    machine |= {"model": bench.model.tag, "arithmetic": arithmetic}
    accepted = figures.read_ratios().get(figures.kind_of(machine), {})
    fallen = figures.find_fallen(values, accepted)
    report = bench_report.Report(
        {**machine, "settings": bench_report.describe_settings(bench.settings)},
        bench.results,
        values,
        bench.images,
        options.seconds,
        options.rounds,
        options.pairs,
        load,
        bench.wavered,
    )
    print(*bench_report.table(report), sep="\n")
    if folder := options.folder or (None if options.only else ROOT / "docs" / "reference"):
        bench_report.write(report, folder)
    if options.accept:
        accept(report)
        return 0
    if not accepted:
        print(f"No ratios are accepted for {figures.kind_of(machine)}; on a quiet machine, --accept writes them.")
    print(*(f"FELL  {line}" for line in fallen), sep="\n", end="\n" if fallen else "")
    return MISSED if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
