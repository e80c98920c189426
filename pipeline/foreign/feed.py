"""Reads the watched facts (chestct.watched) of later images, from a folder or from the service's inference log."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.buckets import is_url
from chestct.card import ModelCard
from chestct.watched import EDGES, Scores, count, measure
from pipeline.core.errors import DataError
from pipeline.foreign.answering import Answered, Model, answer_files, number_patients
from pipeline.foreign.folders import list_pictures
from pipeline.foreign.inference_log import SUFFIX, Part, parts_of, rows_of
from pipeline.images.listing import in_utf8
from pipeline.judging.reference import probability_of_pair


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


def read_feed(place: str, model: Model, since: date | None = None) -> Feed:
    """Read the log at `place`, or else the images in the folder of that name.

    A log is a Parquet file, or a folder or bucket that holds some. `since` is the first day of a log that is read.
    Raises DataError if there is neither, or if the log is of other models alone or can't be read.
    """
    parts = parts_of(place, since)
    first = next(parts, None)
    if first is not None:
        return _read_log(itertools.chain([first], parts), model.card, in_utf8(place))
    if since is not None:
        raise DataError(f"{in_utf8(place)}: no inference log of {since} or later (date=YYYY-MM-DD/*{SUFFIX})")
    if is_url(place):
        raise DataError(f"{place}: no inference log (*{SUFFIX})")
    return _read_images(Path(place), model)


def _read_images(folder: Path, model: Model) -> Feed:
    files = list_pictures(folder)
    if not files:
        raise DataError(f"{in_utf8(str(folder))}: no pictures, and no inference log (*{SUFFIX})")
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


def _read_log(parts: Iterator[Part], card: ModelCard, place: str) -> Feed:
    counts = {name: np.zeros(len(edges) + 1, np.int64) for name, edges in EDGES.items()}
    images, others = 0, 0
    for rows in rows_of(parts, {*EDGES, "model_sha256"}):
        own = [row for row in rows if row["model_sha256"] == card.lineage.model_sha256]
        images, others = images + len(own), others + len(rows) - len(own)
        for name in EDGES:
            values = [_value(name, row, card.classes) for row in own]
            counts[name] += count(name, [value for value in values if value is not None])
    if not images:
        raise DataError(f"{place}: no row is of this model; name the log's model by MODEL=tag")
    return Feed(counts, images, None, None, f"{others} rows of other models" if others else "")


def _value(name: str, row: Mapping[str, float | None], classes: Sequence[str]) -> float | None:
    """A fact in a row. `confidence` is empty there without a label, so it is taken from the probabilities."""
    if name == "confidence":
        return max(float(row[f"p_{each}"] or 0) for each in classes)
    return row[name]
