"""What benchmarks.tune tries, and which settings it takes of what it measured.

A machine that wavers must not decide. So settings take the place of the present ones only if they do more in a paired
comparison, and a bound counts as missed only if the median misses it too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from benchmarks.figures import interval
from serving.settings import PREFIX, Settings

BATCHES: Final = (1, 2, 4, 8)
FIRST_BATCH: Final = 2
"""Largest batch while workers and threads are searched."""
ALIKE: Final = 0.95
"""Share of the best rate that counts as equally good. The cheapest of those configurations is chosen."""
PAIRS: Final = 10
"""Turns of the comparison with the present settings."""
LEAST_PAIRS: Final = 6
"""With fewer there is no interval of 95 %."""
LEAST_COMPARING: Final = 2
"""Connections a core of the comparison, at least."""
MOST_COMPARING: Final = 8
QUEUE_TRIES: Final = 5
LONGEST_QUEUE: Final = 10_000
"""Limit of the setting."""


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


def present() -> Configuration:
    """Return the settings of this environment, which `make serve` would use. Raises SettingsError."""
    settings = Settings.read()
    return Configuration(*(getattr(settings, name) for name in Configuration._fields))


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
    now: Configuration,
    measure: Callable[[Configuration], Measurement],
    show: Callable[[Measurement, int, int], None],
) -> list[Measurement]:
    """Measure the present configuration `now` and the others. `bound`: seconds.

    `show` is called with each measurement, its number and the total.
    """
    found: list[Measurement] = []
    first = dict.fromkeys([now, *(one._replace(queue_size=now.queue_size) for one in pairs(cores))])
    most = len(first) + 2 * (len(BATCHES) - 1)

    def take(configurations: Iterable[Configuration]) -> None:
        for configuration in configurations:
            found.append(measure(configuration))
            show(found[-1], len(found), max(most, len(found)))

    take(first)
    best = dict.fromkeys(
        one.configuration[:2] for one in sorted(found, key=lambda one: _worth(one, bound), reverse=True)
    )
    done = {one.configuration for one in found}
    wanted = (Configuration(*pair, size, now.queue_size) for pair in list(best)[:2] for size in BATCHES)
    take(one for one in wanted if one not in done)
    return found


def choose(found: Sequence[Measurement], bound: float, now: Configuration) -> Measurement:
    """Return the measurement that takes least memory among those about as good as the best.

    If none keeps the bound, but some do in the median, the machine wavers: then return the present one, `now`. Raises
    Missed if the medians miss the bound too.
    """
    held = [one for one in found if one.held.p99 <= bound]
    if held:
        best = max(one.held.rate for one in held)
        alike = [one for one in held if one.held.rate >= ALIKE * best]
        return min(alike, key=lambda one: (one.configuration.workers, one.configuration.largest_batch, -one.held.rate))
    if any(one.held.p50 <= bound for one in found):
        return _of(found, now)
    nearest = min(found, key=lambda one: one.held.p50)
    raise Missed(
        f"no configuration keeps a p99 of {1000 * bound:g} ms; the nearest, {in_words(nearest.configuration)}, "
        f"has a median of {1000 * nearest.held.p50:.0f} ms at {nearest.held.rate:.0f} images a second"
    )


def comparing_connections(capacity: float, bound: float, cores: int) -> int:
    """Connections on which two configurations are compared, each with one request in progress.

    By Little's law, so many take half of the bound to be answered on a machine with this capacity, in images a second.
    If all of them took longer than the bound, nothing would be compared.
    """
    return max(LEAST_COMPARING * cores, min(MOST_COMPARING * cores, int(capacity * bound / 2)))


def decide(
    found: Sequence[Measurement], chosen: Measurement, now: Configuration, ratios: Sequence[float]
) -> tuple[Measurement, str]:
    """Return what is taken and why: `chosen` if it does more than the present configuration `now`, or else that one.

    `ratios`: what `chosen` did to what `now` did at the same time, a value for each pair that says something.
    """
    if chosen.configuration == now:
        return chosen, "the present settings stay: no others did more"
    if len(ratios) < LEAST_PAIRS:
        others = in_words(chosen.configuration)
        words = f"in {len(ratios)} of {PAIRS} pairs alone, they or {others} answered within the bound"
        return _of(found, now), f"the present settings stay: {words}"
    low, high = interval(ratios)
    facts = f"{np.median(ratios):.2f} times the present settings ({low:.2f} to {high:.2f}) in {len(ratios)} pairs"
    if low > 1:
        return chosen, f"{in_words(chosen.configuration)} did {facts}"
    return _of(found, now), f"the present settings stay: no gain is shown, {in_words(chosen.configuration)} did {facts}"


def queue_size(bound: float, chosen: Measurement) -> int:
    """Return the queue size by Little's law: the images that a worker answers while an image may wait."""
    a_worker = chosen.capacity / chosen.configuration.workers
    return min(LONGEST_QUEUE, max(1, int((bound - chosen.held.p50) * a_worker)))


def fit_queue(
    chosen: Measurement, bound: float, check: Callable[[Measurement], tuple[Measurement, Latency]]
) -> tuple[Measurement, str]:
    """Find the longest queue, from Little's law downwards, that keeps the bound below and above the capacity.

    `check` measures a queue below the capacity, and the accepted requests of a burst. Returns `chosen` with that queue,
    or as it is if no queue keeps the bound, and the words that say so.
    """
    size = queue_size(bound, chosen)
    for _ in range(QUEUE_TRIES):
        now, burst = check(chosen._replace(configuration=chosen.configuration._replace(queue_size=size)))
        facts = (
            f"p99 {1000 * now.held.p99:.0f} ms at {now.held.rate:.1f}, and {1000 * burst.p99:.0f} ms of what is taken"
        )
        if max(now.held.p99, burst.p99) <= bound:
            return now, f"with this queue {facts} of {burst.rate:.1f}"
        if size == 1 or burst.p99 <= bound:  # a shorter queue would refuse more below the capacity
            break
        size = max(1, int(size * min(0.8, bound / burst.p99)))
    tried = now.configuration.queue_size
    return chosen, f"the present queue stays: none kept a p99 of {1000 * bound:g} ms; with {tried} {facts}"


def _of(found: Sequence[Measurement], configuration: Configuration) -> Measurement:
    return next(one for one in found if one.configuration == configuration)


def _worth(one: Measurement, bound: float) -> tuple[bool, float]:
    return one.held.p99 <= bound, one.held.rate


def in_words(configuration: Configuration) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in configuration._asdict().items())
