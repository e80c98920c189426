"""Answers for a person's few files: a table to read, JSON or CSV."""

import csv
import json
from collections.abc import Iterable
from functools import partial
from typing import Literal, TextIO

from archive.models import Model
from archive.scoring import File, Scorer
from archive.sources import read_local
from chestct.buckets import Object
from chestct.tables import Row

Form = Literal["table", "json", "csv"]


def predict(model: Model, names: Iterable[str], form: Form, stream: TextIO) -> int:
    """Write the answers for local files. Returns the number of files without one."""
    scorer = Scorer(model, threads=0)
    try:
        found = list(scorer.score(File(name, partial(read_local, name, Object(name, -1, ""))) for name in names))
    finally:
        scorer.close()
    if form == "json":
        json.dump({"disclaimer": model.card.disclaimer, "model": model.tag, "files": found}, stream, indent=1)
        stream.write("\n")
    elif form == "csv":
        writer = csv.DictWriter(stream, scorer.schema.names)
        writer.writeheader()
        writer.writerows(found)
    else:
        _write_table(model, found, stream)
    return sum(row.get("error") is not None for row in found)


def _write_table(model: Model, found: list[Row], stream: TextIO) -> None:
    lines = [("file", "decision", "label", "confidence", "any cancer", "why"), *(_cells(model, row) for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        stream.write(f"{'  '.join(cells).rstrip()}\n")
    stream.write(f"\n{model.tag}. {model.card.disclaimer}\n")


def _cells(model: Model, row: Row) -> tuple[str, ...]:
    if row.get("error"):
        return row["file"], "error", "", "", "", f"{row['error']}: {row['message']}"
    titles = model.card.titles
    if row["label"] is None:
        return row["file"], row["decision"], "", "", "", row["reasons"]
    share = (f"{row[name]:.1%}" for name in ("confidence", "any_cancer"))
    return row["file"], row["decision"], titles[row["label"]], *share, row["reasons"]
