"""`python -m benchmarks.tune --p99 200`: finds the settings with the highest throughput while p99 keeps a bound.

Serves the newest model of the store with one combination of settings after another: first workers and engine threads,
then the largest batch of the best two, then the longest queue with which accepted images keep the bound at twice the
capacity. Writes settings.env and tune.png.

The clients use the cores that are measured. A service that has its cores to itself does more.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks import footprint
from chestct import store
from load_tests import traffic
from load_tests.images import pictures
from load_tests.server import OUTPUT, ROOT, serve
from load_tests.verdict import MISSED, command
from serving.settings import PREFIX, Settings, SettingsError

T = TypeVar("T")

FOLDER: Final = ROOT / "build" / "tune"

BATCHES: Final = (1, 2, 4, 8)
FIRST_BATCH: Final = 2
"""Largest batch while workers and threads are searched."""
CONNECTIONS_A_CORE: Final = (2, 8, 32)
CHANNELS_A_WORKER: Final = 4
IMAGES: Final = 16
SHARES: Final = (0.9, 0.8, 0.7, 0.5)
"""Rates to try, as shares of the capacity. The first that keeps the bound counts."""
ALIKE: Final = 0.95
"""Share of the best rate that counts as equally good. The cheapest of those configurations is chosen."""
BURST: Final = 2
"""Rate of a burst, as a multiple of the capacity."""
QUEUE_TRIES: Final = 5
LONGEST_QUEUE: Final = 10_000
"""Limit of the setting."""
DRAWN: Final = 3
"""Multiple of the bound at which a higher p99 is drawn."""


class Configuration(NamedTuple):
    """The settings that are searched."""

    workers: int
    engine_threads: int
    largest_batch: int = FIRST_BATCH
    queue_size: int = Settings.model_fields["queue_size"].default

    @property
    def environment(self) -> dict[str, str]:
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in self._asdict().items()}


class Latency(NamedTuple):
    """Rate and latency of an open loop."""

    rate: float
    """Requests a second."""
    p50: float
    """Seconds. A request without an answer counts as infinite."""
    p99: float
    """Seconds. It stays finite if at most one request in a hundred has no answer."""


class Measurement(NamedTuple):
    configuration: Configuration
    capacity: float
    """Good answers a second in a closed loop, for the best number of connections."""
    held: Latency
    """At the first of SHARES that kept the bound, or at the last."""


class Missed(Exception):
    """Nothing keeps the bound. The message names what came nearest."""


def pairs(cores: int) -> list[Configuration]:
    """Return the workers and engine threads to try. They use from half of the cores to 1.5 times the cores."""
    most = max(1, 3 * cores // 2)
    workers = sorted({*(1 << power for power in range(cores.bit_length())), cores, most})
    threads = {count: {math.ceil(cores / count), math.ceil(cores / count / 2)} for count in workers}
    return [
        Configuration(count, each)
        for count in workers
        for each in sorted(threads[count])
        if cores / 2 <= count * each <= most
    ]


def search(
    cores: int,
    bound: float,
    measure: Callable[[Configuration], Measurement],
    show: Callable[[Measurement, int, int], None],
) -> list[Measurement]:
    """Measure the configurations. `bound`: seconds. `show`: called with each measurement, its number and the total."""
    found: list[Measurement] = []
    first = pairs(cores)
    others = [size for size in BATCHES if size != FIRST_BATCH]
    total = len(first) + min(2, len(first)) * len(others)

    def take(configurations: Iterable[Configuration]) -> None:
        for configuration in configurations:
            found.append(measure(configuration))
            show(found[-1], len(found), total)

    take(first)
    best = sorted(found, key=lambda one: _worth(one, bound), reverse=True)[:2]
    take(one.configuration._replace(largest_batch=size) for one in best for size in others)
    return found


def choose(found: Sequence[Measurement], bound: float) -> Measurement:
    """Return the measurement that takes least memory among those about as good as the best. Raises Missed."""
    held = [one for one in found if one.held.p99 <= bound]
    if not held:
        nearest = min(found, key=lambda one: one.held.p99)
        raise Missed(
            f"no configuration keeps a p99 of {1000 * bound:g} ms; the nearest, {_in_words(nearest.configuration)}, "
            f"has {1000 * nearest.held.p99:.0f} ms at {nearest.held.rate:.0f} images a second"
        )
    best = max(one.held.rate for one in held)
    alike = [one for one in held if one.held.rate >= ALIKE * best]
    return min(alike, key=lambda one: (one.configuration.workers, one.configuration.largest_batch, -one.held.rate))


def queue_size(bound: float, chosen: Measurement) -> int:
    """Return the queue size by Little's law: the images that a worker answers while an image may wait."""
    a_worker = chosen.capacity / chosen.configuration.workers
    return min(LONGEST_QUEUE, max(1, int((bound - chosen.held.p50) * a_worker)))


def fit_queue(
    chosen: Measurement, bound: float, check: Callable[[Measurement], tuple[Measurement, Latency]]
) -> tuple[Measurement, Latency]:
    """Find the longest queue, from Little's law downwards, that keeps the bound below and above the capacity.

    `check` measures a queue below the capacity, and the accepted requests of a burst. Raises Missed.
    """
    size = queue_size(bound, chosen)
    for _ in range(QUEUE_TRIES):
        now, burst = check(chosen._replace(configuration=chosen.configuration._replace(queue_size=size)))
        if max(now.held.p99, burst.p99) <= bound:
            return now, burst
        if size == 1 or burst.p99 <= bound:  # a shorter queue would refuse more below the capacity
            break
        size = max(1, int(size * min(0.8, bound / burst.p99)))
    raise Missed(
        f"no queue keeps a p99 of {1000 * bound:g} ms; {_in_words(now.configuration)} has {1000 * now.held.p99:.0f} ms "
        f"at {now.held.rate:.0f} images a second and {1000 * burst.p99:.0f} ms at {burst.rate:.0f}"
    )


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


def settings_file(chosen: Measurement, burst: Latency, bound: float, model: str) -> str:
    """Return the settings for a shell (`set -a; . FILE`), `--env-file`, or a ConfigMap by `--from-env-file`."""
    machine = footprint.describe_machine()
    facts = (
        f"`make tune P99={1000 * bound:g}` on {datetime.now(UTC):%Y-%m-%d}, commit {machine['commit']}, model {model}",
        f"on {_cores()} cores, {machine['CPU']}, with the sender of the requests on the same cores:",
        f"{chosen.capacity:.1f} images a second at most; p99 {1000 * chosen.held.p99:.0f} ms at {chosen.held.rate:.1f},"
        f" and {1000 * burst.p99:.0f} ms of what is taken of {burst.rate:.1f}",
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
            channels = max(traffic.CHANNELS, CHANNELS_A_WORKER * configuration.workers)
            async with traffic.Clients(server, Settings.read().request_timeout, pictures(IMAGES), channels) as clients:
                return await work(clients)

        result: T = traffic.run(run())
        return result


def _worth(one: Measurement, bound: float) -> tuple[bool, float]:
    return one.held.p99 <= bound, one.held.rate


def _cores() -> int:
    """Return the number of cores as the settings count them."""
    cores: int = Settings.model_fields["workers"].get_default(call_default_factory=True, validated_data={})
    return cores


def _in_words(configuration: Configuration) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in configuration._asdict().items())


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


def _tune(bound: float, seconds: float) -> None:
    """Search, print and write the settings. Raises Missed, LoadError, SettingsError and NoModel."""
    model = store.find(Settings.read().model).tag
    started = time.monotonic()
    print(f"{'workers':>9}{'threads':>9}{'batch':>7}{'capacity':>11}{'rate':>9}{'p99':>10}{'to go':>9}", flush=True)

    def show(one: Measurement, number: int, total: int) -> None:
        to_go = (time.monotonic() - started) / number * (total - number + 1)  # plus one for the queue
        workers, threads, batch, _ = one.configuration
        print(
            f"{workers:9}{threads:9}{batch:7}{one.capacity:9.1f}/s{one.held.rate:7.1f}/s{1000 * one.held.p99:7.0f} ms"
            f"{to_go / 60:5.1f} min",
            flush=True,
        )

    found = search(_cores(), bound, lambda configuration: measure(configuration, bound, seconds), show)
    best = choose(found, bound)
    picture = FOLDER / "tune.png"
    _replace(picture, lambda path: draw(found, best, bound, path))  # before the search for a queue, which may fail
    print(picture.relative_to(ROOT), flush=True)
    chosen, burst = fit_queue(best, bound, lambda one: check(one, bound, seconds))
    text = settings_file(chosen, burst, bound, model)
    _replace(FOLDER / "settings.env", lambda path: path.write_text(text, encoding="utf-8"))
    print(text, (FOLDER / "settings.env").relative_to(ROOT), sep="")


@command("tune", SettingsError, store.NoModel, interrupted="interrupted; no settings were written")
def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 written, 2 no result, 3 nothing keeps the bound, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--p99", type=_milliseconds, default="200", help="the bound in ms (default %(default)s)")
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
