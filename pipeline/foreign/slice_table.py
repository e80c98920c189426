"""Writes what became of each slice as a table, to look at single ones."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.foreign.answering import Answered
from pipeline.images.classes import class_count, class_names

HEAD: Final = ("file", "source", "known", "patient", "outcome", "label", "reasons", "problem", "ood_score", "chest_ct")
"""The columns before those of the classes."""


def write_slices(answered: Sequence[Answered], path: Path) -> None:
    """Write a CSV file with a row for each slice. A probability means nothing if there is no label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*HEAD, *class_names()))
        writer.writerows(map(_row, answered))


def _row(answered: Answered) -> list[object]:
    file, found = answered.file, answered.prediction
    begin = [file.name, file.source, file.known, file.patient, answered.outcome]
    if found is None:
        return [*begin, "", "", answered.problem, *[""] * (2 + class_count())]
    scores = (found.ood_score, found.chest_ct, *(found.probabilities[name] for name in class_names()))
    return [*begin, found.label or "", " ".join(found.reasons), "", *(f"{score:.4f}" for score in scores)]
