"""`python -m benchmarks.autoscaling`: simulates a day of autoscaling by CPU and by the queue, and draws both.

The simulation goes by the second. Images come at random around the shape of a day. Pods answer up to their measured
capacity, and the other images wait, up to the bound of the queue. The autoscaler works like Kubernetes': it decides
every 15 seconds, with the targets and the behaviour of the manifests in k8s/. docs/how-to/plan-capacity.md explains the
result.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

PICTURE: Final = Path(__file__).parents[1] / "docs" / "images" / "autoscaling.png"
CAPACITY: Final = 187.0
"""Images a second of a pod with two cores and the released network in bfloat16, measured by `make overload`."""
START_UP: Final = 20
"""Seconds from the autoscaler's decision to a ready pod on a node that has the image. The service takes 4 of them."""
SERVICE_TIME: Final = 0.05
"""Seconds of an answer that does not wait."""
QUEUE_A_POD: Final = 512
"""Images that may wait in a pod."""
LEAST, MOST = 2, 10
"""Pods."""
CPU_TARGET: Final = 120 / 200
"""Share of a pod's capacity: 120 % of its request of one core. At 200 % the pod is full."""
QUEUE_TARGET: Final = 16
"""Waiting images for each pod."""
SYNC: Final = 15
"""Seconds between two decisions of the autoscaler."""
CPU_DELAY: Final = 30
"""Seconds over which the metrics server averages, plus its delay."""
QUEUE_DELAY: Final = 15
"""Seconds between two scrapes of Prometheus."""
QUIET: Final = 300
"""Seconds of low load before pods are removed."""
REMOVAL_PAUSE: Final = 60
"""Seconds between two removals."""
IGNORED: Final = 0.1
"""Share by which the load may exceed the pods before any are added."""
DAY: Final = 86_400


class Course(NamedTuple):
    """The simulated day, a value for each second."""

    pods: NDArray[np.int64]
    waiting: NDArray[np.float64]
    """Images in all queues."""
    latency: NDArray[np.float64]
    """Seconds from arrival to answer, of the image that is answered then."""
    refused: NDArray[np.float64]
    """Images that found the queue full."""


def day() -> NDArray[np.float64]:
    """Return images a second: few at night, more over the working day, and two batches."""
    hours = np.arange(DAY) / 3600
    load = 40 + 420 * np.exp(-(((hours - 13) / 3.2) ** 2))
    for start, minutes, extra in ((9.5, 10, 500), (15.5, 5, 450)):
        load[(hours >= start) & (hours < start + minutes / 60)] += extra
    return load


def by_cpu(busy: NDArray[np.float64], waiting: NDArray[np.float64], pods: int) -> float:
    """Return the wanted pods from the used share of the capacity, which is at most 1 even if the queue is long."""
    return pods * float(busy[-CPU_DELAY:].mean()) / CPU_TARGET


def by_queue(busy: NDArray[np.float64], waiting: NDArray[np.float64], pods: int) -> float:
    """Return the wanted pods from the most waiting images in 30 s, or from CPU if that wants more."""
    seen = waiting[: len(waiting) - QUEUE_DELAY][-30:]
    return max(float(seen.max(initial=0)) / QUEUE_TARGET, by_cpu(busy, waiting, pods))


Wish = Callable[[NDArray[np.float64], NDArray[np.float64], int], float]


class Autoscaler:
    """Decides like Kubernetes': doubles the pods at most, and removes one a minute after QUIET seconds of low load."""

    def __init__(self) -> None:
        self.pods = LEAST
        """Pods that it has asked for, also those that still start."""
        self._goals: dict[int, int] = {}
        """The pods that each recent decision found right, by its second."""
        self._removed_at = -REMOVAL_PAUSE

    def decide(self, now: int, needed: float) -> int:
        """Return how many pods to add, or -1 to remove one. `needed`: pods that the load needs now."""
        goal = min(MOST, max(LEAST, math.ceil(needed)))
        self._goals = {then: one for then, one in self._goals.items() if then > now - QUIET} | {now: goal}
        change = 0
        if goal > self.pods and needed > (1 + IGNORED) * self.pods:
            change = min(goal, 2 * self.pods) - self.pods
        elif max(self._goals.values()) < self.pods and now - self._removed_at >= REMOVAL_PAUSE:
            change, self._removed_at = -1, now
        self.pods += change
        return change


def simulate(arrivals: NDArray[np.int64], wish: Wish, capacity: float = CAPACITY) -> Course:
    """Simulate the day. `arrivals`: images by second. `wish`: returns the pods that the load needs."""
    seconds = len(arrivals)
    pods, waiting, latency, refused, busy = (np.zeros(seconds) for _ in range(5))
    autoscaler = Autoscaler()
    ready = LEAST
    starting: list[int] = []
    queue = 0.0
    for now in range(seconds):
        ready += starting.count(now)
        most = ready * capacity
        queue += float(arrivals[now])
        answered = min(queue, most)
        queue -= answered
        refused[now] = max(0.0, queue - QUEUE_A_POD * ready)
        queue -= refused[now]
        pods[now], waiting[now], busy[now] = ready, queue, answered / most
        latency[now] = SERVICE_TIME + queue / most
        if now % SYNC == 0:
            change = autoscaler.decide(now, wish(busy[: now + 1], waiting[: now + 1], autoscaler.pods))
            starting += [now + START_UP] * change  # none if it is negative
            ready += min(0, change)
    return Course(pods.astype(np.int64), waiting, latency, refused)


def p99_by_minute(course: Course, arrivals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the p99 latency in seconds of each minute's images."""
    minutes = len(arrivals) // 60
    return np.array(
        [
            np.quantile(np.repeat(course.latency[60 * m : 60 * m + 60], arrivals[60 * m : 60 * m + 60]), 0.99)
            for m in range(minutes)
        ]
    )


def draw(arrivals: NDArray[np.int64], courses: dict[str, Course], capacity: float, path: Path) -> None:
    """Draw the day by the minute (left) and the first batch by the second (right)."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(3, 2, sharex="col", sharey="row")
    for column, (step, start, stop) in enumerate(((60, 6, 20), (1, 9.48, 9.6))):
        load, pods, latency = axes[:, column]
        part = slice(int(start * 3600), int(stop * 3600))
        hours = np.arange(part.start, part.stop, step) / 3600
        load.plot(hours, arrivals[part].reshape(-1, step).mean(axis=1), color="0.2", label="load")
        for (name, course), style in zip(courses.items(), ("C1", "C0"), strict=True):
            in_use = course.pods[part][::step]
            load.plot(hours, in_use * capacity, color=style, label=f"capacity, by {name}")
            pods.step(hours, in_use, color=style, label=f"by {name}")
            of_all = course.latency if step == 1 else p99_by_minute(course, arrivals)
            latency.semilogy(hours, of_all[part.start // step : part.stop // step], color=style, label=f"by {name}")
        latency.axhline(1, color="0.6", ls=":", label="promised")
        latency.set_xlabel("hour of the day")
        latency.set_xlim(start, stop)
    for axis, label in zip(axes[:, 0], ("images a second", "pods", "p99 in seconds"), strict=True):
        axis.set_ylabel(label)
        axis.legend(loc="upper right", frameon=False, fontsize="small")
    figure.suptitle(f"The autoscaler's day at {capacity:.0f} images a second a pod, {START_UP} s to a ready pod")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscaling", description=__doc__)
    parser.add_argument("--capacity", type=float, default=CAPACITY, help="images a second a pod (default %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    arrivals = np.random.default_rng(0).poisson(day())
    courses = {
        "CPU": simulate(arrivals, by_cpu, options.capacity),
        "queue": simulate(arrivals, by_queue, options.capacity),
    }
    for name, course in courses.items():
        late = float(arrivals[course.latency > 1].sum() / arrivals.sum())
        refused = float(course.refused.sum() / arrivals.sum())
        worst = p99_by_minute(course, arrivals).max()
        print(
            f"by {name:6} late {late:.2%}  refused {refused:.2%}  worst p99 {worst:.1f} s"
            f"  {course.pods.sum() / 3600:.0f} pod hours"
        )
    draw(arrivals, courses, options.capacity, options.picture)


if __name__ == "__main__":
    main()
