"""Scores the parts of a plan in all local cores, or those of one shard. It may be killed and run again at any time."""

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Final, NamedTuple

from archive import plans
from archive.models import Model
from archive.plans import Part, Plan
from archive.progress import Progress
from archive.scoring import File, Scorer
from archive.sources import Source, open_source
from chestct import tables
from chestct.buckets import Store
from chestct.file_errors import CannotGoOn
from chestct.processes import SpawnedPool

_QUEUED: Final = 2
"""Parts for each process that are in work or wait for it. More would only take memory."""


class Shard(NamedTuple):
    """One of `of` shards, counted from 0. It has every part whose number leaves this remainder."""

    number: int = 0
    of: int = 1


def run(plan: Plan, place: str, model: Model, shard: Shard, processes: int) -> None:
    """Score the parts of the shard that are not there yet, and store each whole or not at all.

    Two runs at once share the work as it comes: each part is stored once, by whichever is first. Raises CannotGoOn,
    and KeyboardInterrupt. Its processes have ended then, and all stored parts stay.
    """
    out = Store(place)
    done = {found.name for found in out.names(plans.PARTS)}
    mine = range(shard.number, plan.parts, shard.of)
    sizes = {plans.part_name(number): min(plan.part_rows, plan.files - number * plan.part_rows) for number in mine}
    before = sum(size for name, size in sizes.items() if name in done)
    progress = Progress(sum(sizes.values()), before, sys.stderr)
    todo = (part for part in _from_anywhere(plan, out) if part.name in sizes and part.name not in done)
    if before < sum(sizes.values()):
        _run_all(todo, processes, partial(_start, place, plan, model), progress)
    progress.show(last=True)


def _run_all(todo: Iterator[Part], processes: int, prepare: Callable[[], None], progress: Progress) -> None:
    running = set[Future[int]]()
    try:
        with SpawnedPool(processes, prepare) as pool:
            while True:
                while len(running) < _QUEUED * processes and (part := next(todo, None)):
                    running.add(pool.submit(_score_part, part))
                if not running:
                    break
                finished, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for one in finished:
                    progress.add(one.result())
                progress.show()
    except BrokenProcessPool:
        raise CannotGoOn("a process was killed, perhaps for lack of memory") from None


def _from_anywhere(plan: Plan, out: Store) -> Iterator[Part]:
    """The parts, from a random one on and around, so that two runs at once seldom score the same part."""
    first = random.randrange(plan.parts)
    yield from (part for part in plans.parts(plan, out) if part.number >= first)
    yield from (part for part in plans.parts(plan, out) if part.number < first)


class _Worker:
    """State of a process."""

    out: Store
    source: Source
    scorer: Scorer


def _start(place: str, plan: Plan, model: Model) -> None:
    """Prepare this process."""
    _Worker.out, _Worker.source = Store(place), open_source(plan.kind, plan.root)
    _Worker.scorer = Scorer(model, by_series=plan.by_series)


def _score_part(part: Part) -> int:
    """Score a part and store it, unless another run was faster. Returns the number of its files."""
    if not _Worker.out.has(part.name):
        files = (File(file.name, partial(_Worker.source.read, file)) for file in part.files)
        rows = list(_Worker.scorer.score(files))
        _Worker.out.put_if_absent(part.name, tables.to_parquet(tables.to_batch(rows, _Worker.scorer.schema)))
    return len(part.files)
