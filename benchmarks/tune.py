"""`python -m benchmarks.tune`: finds the settings with the highest throughput while p99 keeps a bound.

Serves the newest model of the store with one combination of settings after another: first the present ones, then other
workers and engine threads, then other largest batches of the best two. What did best is compared with the present
settings in pairs, and takes their place only if it does more. With --p99, also finds the longest queue with which
accepted images keep the bound at twice the capacity. Writes settings.env and tune.png.

The clients use the cores that are measured. A service that has its cores to itself does more.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks import footprint
from benchmarks.tune_choice import (
    PAIRS,
    Configuration,
    Latency,
    Measurement,
    Missed,
    choose,
    comparing_connections,
    decide,
    fit_queue,
    present,
    search,
)
from chestct import store
from load_tests import traffic
from load_tests.images import pictures
from load_tests.server import OUTPUT, ROOT, Server, serve
from load_tests.verdict import MISSED, command
from serving.settings import Settings, SettingsError

T = TypeVar("T")

FOLDER: Final = ROOT / "build" / "tune"

CONNECTIONS_A_CORE: Final = (2, 8, 32)
"""For the capacity."""
CHANNELS_A_WORKER: Final = 4
IMAGES: Final = 16
SHARES: Final = (0.9, 0.8, 0.7, 0.5)
"""Rates to try, as shares of the capacity. The first that keeps the bound counts."""
BURST: Final = 2
"""Rate of a burst, as a multiple of the capacity."""
BOUND: Final = 0.2
"""Seconds of p99 unless --p99 is given."""
DRAWN: Final = 3
"""Multiple of the bound at which a higher p99 is drawn."""


def latency(outcomes: Sequence[traffic.Outcome], rate: float) -> Latency:
    times = [outcome.seconds if outcome.code in traffic.GOOD else math.inf for outcome in outcomes]
    return Latency(rate, *np.quantile(times or [math.inf], [0.5, 0.99], method="inverted_cdf").tolist())


def measure(configuration: Configuration, bound: float, seconds: float) -> Measurement:
    """Measure a configuration in a closed loop, then below its capacity. Raises LoadError."""

    async def work(clients: traffic.Clients) -> Measurement:
        capacity = max([await traffic.capacity(clients, seconds, _cores() * each) for each in CONNECTIONS_A_CORE])
        return Measurement(configuration, capacity, await _below(clients, capacity, bound, seconds))

    return _served(configuration, work)


def check(chosen: Measurement, bound: float, seconds: float) -> tuple[Measurement, Latency]:
    """Measure a configuration below its capacity, then in a burst above it. Raises LoadError."""

    async def work(clients: traffic.Clients) -> tuple[Measurement, Latency]:
        await traffic.open_loop(clients, SHARES[-1] * chosen.capacity, seconds / 3)
        held = await _below(clients, chosen.capacity, bound, seconds)
        rate = BURST * chosen.capacity
        outcomes = await traffic.open_loop(clients, rate, seconds)
        taken = [outcome for outcome in outcomes if outcome.code not in traffic.BUSY]
        return chosen._replace(held=held), latency(taken, rate)

    return _served(chosen.configuration, work)


def compare(now: Measurement, other: Configuration, bound: float, seconds: float) -> list[float]:
    """Return `other`'s answers within the bound to those of `now`, a ratio for each pair. Raises LoadError.

    Both are served at once, and asked in turn, so that a machine that wavers does so for both. A pair in which neither
    answers within the bound says nothing, and is left out.
    """
    connections = comparing_connections(now.capacity, bound, _cores())

    async def rate(server: Server, configuration: Configuration) -> float:
        async with _clients(server, configuration) as clients:
            return await traffic.capacity(clients, seconds / 2, connections, within=bound)

    async def ratio(servers: dict[Configuration, Server], turn: int) -> float | None:
        order = (now.configuration, other) if turn % 2 else (other, now.configuration)
        rates = {one: await rate(servers[one], one) for one in order}
        return rates[other] / max(rates[now.configuration], 1 / seconds) if any(rates.values()) else None

    with contextlib.ExitStack() as stack:
        servers = {
            one: stack.enter_context(
                serve(environment={**os.environ, **one.environment}, log=OUTPUT / f"tune-{name}.log")
            )
            for name, one in (("present", now.configuration), ("other", other))
        }
        ratios = [traffic.run(ratio(servers, turn)) for turn in range(PAIRS)]
    return [each for each in ratios if each is not None]


def settings_file(chosen: Measurement, why: Sequence[str], command: str, model: str) -> str:
    """Return the settings for a shell (`set -a; . FILE`), `--env-file`, or a ConfigMap by `--from-env-file`."""
    machine = footprint.describe_machine()
    facts = (
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}, commit {machine['commit']}, model {model}",
        f"on {_cores()} cores, {machine['CPU']}, with the sender of the requests on the same cores:",
        f"{chosen.capacity:.1f} images a second at most; p99 {1000 * chosen.held.p99:.0f} ms at {chosen.held.rate:.1f}",
        *why,
    )
    lines = [f"{name}={value}" for name, value in chosen.configuration.environment.items()]
    return "".join(f"{line}\n" for line in (*(f"# {fact}" for fact in facts), *lines))


def draw(found: Sequence[Measurement], chosen: Measurement, bound: float, path: Path) -> None:
    """Draw the rate and p99 of each configuration. `chosen` is one of them."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    places = [(one.held.rate, 1000 * min(one.held.p99, DRAWN * bound)) for one in found]
    for pair in dict.fromkeys(one.configuration[:2] for one in found):
        ours = [place for one, place in zip(found, places, strict=True) if one.configuration[:2] == pair]
        axes.plot(*zip(*ours, strict=True), "o", label=f"{pair[0]} x {pair[1]}")
    rates = [-math.inf, *sorted(rate for rate, _ in places), math.inf]
    for place, one in zip(places, found, strict=True):
        # The label is on the side away from the nearest point.
        index = rates.index(place[0], 1)
        right = rates[index + 1] - rates[index] >= rates[index] - rates[index - 1]
        axes.annotate(
            str(one.configuration.largest_batch),
            place,
            (5 if right else -5, 4),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
        )
    place = (chosen.held.rate, 1000 * chosen.held.p99)
    axes.plot(*place, "o", ms=16, mfc="none", mec="#cf222e", mew=1.5, label="chosen", ls="none")
    axes.axhline(1000 * bound, color="#cf222e", lw=1, ls="--", label=f"bound: {1000 * bound:g} ms")
    axes.set_title("The rate that each configuration bears; the number at a point is its largest batch", fontsize=11)
    axes.set_xlabel("images a second: the highest within the bound, or the lowest that was tried")
    axes.set_ylabel(f"p99 in ms, drawn up to {DRAWN} times the bound")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.1)
    axes.legend(title="workers x threads", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


async def _below(clients: traffic.Clients, capacity: float, bound: float, seconds: float) -> Latency:
    """Measure at the first of SHARES that keeps the bound, or at the last."""
    for share in SHARES:
        rate = share * capacity
        held = latency(await traffic.open_loop(clients, rate, seconds), rate)
        if held.p99 <= bound:
            break
    return held


def _served(configuration: Configuration, work: Callable[[traffic.Clients], Awaitable[T]]) -> T:
    """Start a server with this configuration and return the result of `work`."""
    environment = {**os.environ, **configuration.environment}
    with serve(environment=environment, log=OUTPUT / "tune.log") as server:

        async def run() -> T:
            async with _clients(server, configuration) as clients:
                return await work(clients)

        result: T = traffic.run(run())
        return result


def _clients(server: Server, configuration: Configuration) -> traffic.Clients:
    channels = max(traffic.CHANNELS, CHANNELS_A_WORKER * configuration.workers)
    return traffic.Clients(server, Settings.read().request_timeout, pictures(IMAGES), channels)


def _cores() -> int:
    """Return the number of cores as the settings count them."""
    cores: int = Settings.model_fields["workers"].get_default(call_default_factory=True, validated_data={})
    return cores


def _milliseconds(text: str) -> float:
    """Parse milliseconds and return seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected milliseconds above 0, got {text}")
    return value / 1000


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_stem(f".{path.stem}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tune(given: float | None, seconds: float) -> None:
    """Search, print and write the settings. `given`: the bound of --p99.

    Raises Missed, LoadError, SettingsError and NoModel.
    """
    model = store.find(Settings.read().model).tag
    now, bound = present(), given or BOUND
    started = time.monotonic()
    print(f"{'workers':>9}{'threads':>9}{'batch':>7}{'capacity':>11}{'rate':>9}{'p99':>10}{'to go':>9}", flush=True)

    def show(one: Measurement, number: int, total: int) -> None:
        to_go = (time.monotonic() - started) / number * (total - number + 2)  # plus the comparison and the queue
        workers, threads, batch, _ = one.configuration
        print(
            f"{workers:9}{threads:9}{batch:7}{one.capacity:9.1f}/s{one.held.rate:7.1f}/s{1000 * one.held.p99:7.0f} ms"
            f"{to_go / 60:5.1f} min",
            flush=True,
        )

    found = search(_cores(), bound, now, lambda configuration: measure(configuration, bound, seconds), show)
    best = choose(found, bound, now)
    ratios = [] if best.configuration == now else compare(found[0], best.configuration, bound, seconds)
    chosen, reason = decide(found, best, now, ratios)
    why = [reason]
    if chosen.held.p99 > bound:
        why.append(f"nothing kept a p99 of {1000 * bound:g} ms in this run: try again on a calmer machine")
    picture = FOLDER / "tune.png"
    _replace(picture, lambda path: draw(found, chosen, bound, path))
    print(picture.relative_to(ROOT), flush=True)
    if given:
        chosen, words = fit_queue(chosen, bound, lambda one: check(one, bound, seconds))
        why.append(words)
    text = settings_file(chosen, why, f"make tune P99={1000 * given:g}" if given else "make tune", model)
    _replace(FOLDER / "settings.env", lambda path: path.write_text(text, encoding="utf-8"))
    print(text, (FOLDER / "settings.env").relative_to(ROOT), sep="")


@command("tune", SettingsError, store.NoModel, interrupted="interrupted; no settings were written")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 written, 2 no result, 3 not even a median keeps the bound, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument(
        "--p99", type=_milliseconds, help=f"the bound in ms (default {1000 * BOUND:g}), also for bursts"
    )
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement (default %(default)g)")
    options = parser.parse_args(arguments)
    try:
        _tune(options.p99, options.seconds)
    except Missed as miss:
        print(f"tune: {miss}", file=sys.stderr)
        return MISSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
