"""Reads the watched facts (chestct.watched) of later images, from a folder or from the service's inference log."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct import tables
from chestct.card import ModelCard
from chestct.watched import EDGES, Scores, count, measure
from pipeline.core.errors import DataError
from pipeline.foreign.answering import Answered, Model, answer_files, number_patients
from pipeline.foreign.folders import list_files, list_pictures
from pipeline.images.listing import in_utf8
from pipeline.judging.reference import probability_of_pair

_LOG: Final = ".parquet"
_TOGETHER: Final = 10_000
"""Rows of a log that are in memory at the same time."""


class Feed(NamedTuple):
    """Later images."""

    counts: dict[str, NDArray[np.int64]]
    """Images in each bin, by the fact's name."""
    images: int
    patients: int | None
    """None if no image names its patient."""
    same_scan: float | None
    """Probability that two of the images are of one patient; None if no image names its patient."""
    left_out: str
    """What was left out and why; empty if nothing was."""


def read_feed(place: Path, model: Model) -> Feed:
    """Read the log at `place`, a Parquet file or a folder that holds some, or else the images in the folder.

    Raises DataError if there is neither, or if the log is of other models alone or can't be read.
    """
    parts = [place] if place.is_file() else [path for path in list_files(place) if path.suffix == _LOG]
    return _read_log(parts, model.card) if parts else _read_images(place, model)


def _read_images(folder: Path, model: Model) -> Feed:
    files = list_pictures(folder)
    if not files:
        raise DataError(f"{in_utf8(str(folder))}: no pictures, and no inference log (*{_LOG})")
    answered = answer_files(model, files)
    read = [each for each in answered if each.prediction is not None]
    limit = model.card.thresholds.ood_limit
    rows = [_measure(each, limit) for each in read]
    if not rows:
        raise DataError(f"{in_utf8(str(folder))}: none of the {len(answered)} files is an image that can be read")
    named = not all(each.file.alone for each in read)
    patients = number_patients(read)
    unread = len(answered) - len(read)
    return Feed(
        counts={name: count(name, [row[name] for row in rows]) for name in EDGES},
        images=len(rows),
        patients=len(np.unique(patients)) if named else None,
        same_scan=probability_of_pair(patients) if named else None,
        left_out=f"{unread} files that can't be read" if unread else "",
    )


def _measure(answered: Answered, limit: float) -> dict[str, float]:
    answer = answered.prediction
    assert answer is not None
    probabilities = np.array(list(answer.probabilities.values()))
    return measure(answered.facts, Scores(probabilities, answer.ood_score, limit, answer.chest_ct))


def _read_log(parts: Sequence[Path], card: ModelCard) -> Feed:
    counts = {name: np.zeros(len(edges) + 1, np.int64) for name, edges in EDGES.items()}
    images, others = 0, 0
    for rows in _batches(parts):
        own = [row for row in rows if row["model_sha256"] == card.lineage.model_sha256]
        images, others = images + len(own), others + len(rows) - len(own)
        for name in EDGES:
            values = [_value(name, row, card.classes) for row in own]
            counts[name] += count(name, [value for value in values if value is not None])
    if not images:
        raise DataError(f"{in_utf8(str(parts[0]))}: no row is of this model; name the log's model by MODEL=tag")
    return Feed(counts, images, None, None, f"{others} rows of other models" if others else "")


def _batches(parts: Sequence[Path]) -> Iterator[list[tables.Row]]:
    for part in parts:
        try:
            for rows in tables.read(part, _TOGETHER):
                if missing := {*EDGES, "model_sha256"} - rows[0].keys():
                    raise DataError(
                        f"{in_utf8(str(part))}: this is no inference log, for it has no column {min(missing)}"
                    )
                yield rows
        except (tables.Unreadable, OSError) as error:
            raise DataError(
                f"{in_utf8(str(part))}: can't be read as Parquet: {' '.join(str(error).split())}"
            ) from error


def _value(name: str, row: Mapping[str, float | None], classes: Sequence[str]) -> float | None:
    """A fact in a row. `confidence` is empty there without a label, so it is taken from the probabilities."""
    if name == "confidence":
        return max(float(row[f"p_{each}"] or 0) for each in classes)
    return row[name]
