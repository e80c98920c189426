"""Proves that the rows are those of the plan, each exactly once, and sums them up."""

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TextIO

from archive import plans, rows, series
from archive.plans import Part, Plan
from chestct import tables
from chestct.buckets import Store
from chestct.card import DISCLAIMER
from chestct.file_errors import CannotGoOn
from chestct.tables import Row

SERIES: Final = "series.parquet"

_NAMED: Final = 5
"""Problems that are named one by one."""


class Check:
    """The result: problems of the table, and counts of its rows."""

    def __init__(self, plan: Plan, place: str) -> None:
        self._plan = plan
        self._place = place
        self.problems: list[str] = []
        self.rows = self.missing = self.twice = self.foreign = 0
        self.seconds = 0.0
        self.decisions = Counter[str]()
        self.labels = Counter[str]()
        self.reasons = Counter[str]()
        self.errors = Counter[str]()
        self.series = series.Summary()

    @property
    def complete(self) -> bool:
        """Whether each planned file has exactly one row, and nothing else has one."""
        return not self.problems

    def add_part(self, part: Part, found: list[Row] | None) -> None:
        """Compare the rows of a part with its files. None: the part is not there or can't be read."""
        expected = Counter(rows.readable(file.name) for file in part.files)
        present = Counter(row["file"] for row in found or ())
        missing = (expected - present).total()
        twice = sum(min(count, present[name]) - 1 for name, count in present.items() if expected[name])
        foreign = sum(count for name, count in present.items() if not expected[name])
        self.missing, self.twice, self.foreign = self.missing + missing, self.twice + twice, self.foreign + foreign
        strange = sum(row["model_sha256"] != self._plan.model_sha256 for row in found or ())
        if missing or twice or foreign or strange:
            self.problems.append(
                f"{self._place}/{part.name}: {missing} missing, {twice} twice, {foreign} of no planned file, "
                f"{strange} of another model"
            )
        for row in found or ():
            self._count(row)

    def lines(self) -> Iterator[str]:
        """The summary for a person."""
        yield (
            f"{self._plan.files:,} files, {self.rows:,} rows: {self.missing:,} missing, {self.twice:,} twice, "
            f"{self.foreign:,} of no planned file"
        )
        yield from self.problems[:_NAMED]
        if len(self.problems) > _NAMED:
            yield f"and {len(self.problems) - _NAMED} more parts"
        if self.problems:
            yield f"Remove the wrong parts that are named; then `chestct score run {self._place}` makes what is missing"
        for name, counts in (
            ("decisions", self.decisions),
            ("labels", self.labels),
            ("reasons", self.reasons),
            ("errors", self.errors),
        ):
            yield f"{name}: {', '.join(f'{key} {count:,}' for key, count in counts.most_common()) or 'none'}"
        yield f"model: {self._plan.model}, {self.seconds:,.0f} core seconds"
        if self._plan.by_series:
            yield f"series: {len(self.series.rows()):,}, in {self._place}/{SERIES}. {series.NOTE}"
        yield DISCLAIMER

    def _count(self, row: Row) -> None:
        self.rows += 1
        self.seconds += row["seconds"]
        self.series.add(row)
        if row["error"]:
            self.errors[row["error"]] += 1
            return
        self.decisions[row["decision"]] += 1
        self.labels[row["label"] or "none"] += 1
        self.reasons.update(row["reasons"].split())


def check(plan: Plan, place: str, csv_file: Path | None = None) -> Check:
    """Read every part, compare it with the plan, and write what was asked for: a CSV file, a row for each series.

    Raises CannotGoOn if the plan's manifest or the store can't be read, or a file can't be written.
    """
    out = Store(place)
    result = Check(plan, place)
    planned = set[str]()
    with _csv_file(csv_file) as write:
        for part in plans.parts(plan, out):
            planned.add(part.name)
            content = out.get(part.name)
            found = _read(content)
            result.add_part(part, found)
            write(found or [])
    for stray in sorted(object_.name for object_ in out.names(plans.PARTS) if object_.name not in planned):
        result.problems.append(f"{place}/{stray}: no part of the plan")
    if plan.by_series:
        schema = tables.schema(series.COLUMNS, {"disclaimer": DISCLAIMER})
        out.put(SERIES, tables.to_parquet(tables.to_batch(result.series.rows(), schema)))
    return result


def _read(content: bytes | None) -> list[Row] | None:
    if content is None:
        return None
    try:
        return [row for batch in tables.read(content, plans.MOST_ROWS) for row in batch]
    except tables.Unreadable:
        return None


@contextlib.contextmanager
def _csv_file(path: Path | None) -> Iterator[Callable[[list[Row]], None]]:
    """Yields what writes rows to a CSV file, which appears whole at the end. A pipe gets the rows as they come.

    Without a path the rows go nowhere. Raises CannotGoOn.
    """
    if path is None:
        yield lambda found: None
        return
    place = path.resolve()
    whole = place.is_file() or not place.exists()
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial") if whole else place
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            yield _to_csv(file)
        if whole:
            partial.replace(place)
    except OSError as error:
        raise CannotGoOn(f"{path}: {error.strerror}") from error
    finally:
        if whole:
            with contextlib.suppress(OSError):
                partial.unlink()


def _to_csv(file: TextIO) -> Callable[[list[Row]], None]:
    """What writes rows to an open CSV file. Its first line names the columns of the first row."""
    writer: csv.DictWriter[str] | None = None

    def write(found: list[Row]) -> None:
        nonlocal writer
        if found and writer is None:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
        if writer:
            writer.writerows(found)

    return write
