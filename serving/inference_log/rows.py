"""The rows of the inference log: the columns of an answer, which image it is of, and the watched facts about it.

No row has pixels, a file's name or anything from its header.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

import numpy as np

from chestct import answer_columns, tables, watched
from chestct.card import DISCLAIMER, ModelCard
from chestct.image import Facts
from chestct.prediction import Prediction
from chestct.tables import COUNT, NUMBER, TEXT, TIME, Row, Schema

_BEFORE: Final = {
    "time": TIME,
    "request_id": TEXT,
    "image": COUNT,
    "protocol": TEXT,
    "sha256": TEXT,
    "model": TEXT,
    "model_sha256": TEXT,
}
_AFTER: Final = {"disclaimer": TEXT}
"""The columns before and after those of the answer and of the watched facts."""
_MICROSECONDS: Final = 1_000_000


class Noted(NamedTuple):
    """What the event loop notes about one prediction."""

    seconds: float
    """Time of the prediction in seconds since 1970."""
    request_id: str
    protocol: str
    image: int
    """Place of the image in its request, from 0."""
    sha256: str
    """Of the file as it was sent, or of the pixels, in hexadecimal."""
    facts: Facts | None
    """None if the request had pixels."""
    prediction: Prediction
    """Without heat maps and preview, which are large."""


def schema(classes: tuple[str, ...]) -> Schema:
    """The log's schema for a model of these classes.

    A column that both the answer and the watched facts have is the answer's: `confidence` is null without a label. The
    watched fact of that name is the largest of the classes' columns.
    """
    columns = {**_BEFORE, **dict.fromkeys(watched.EDGES, NUMBER), **answer_columns.columns(classes), **_AFTER}
    return tables.schema(columns, {"disclaimer": DISCLAIMER})


def to_row(card: ModelCard, noted: Noted) -> Row:
    """The row of a prediction of the card's model."""
    answer = noted.prediction
    probabilities = np.array(list(answer.probabilities.values()))
    scores = watched.Scores(probabilities, answer.ood_score, card.thresholds.ood_limit, answer.chest_ct)
    return {
        "time": int(_MICROSECONDS * noted.seconds),
        "request_id": noted.request_id,
        "image": noted.image,
        "protocol": noted.protocol,
        "sha256": noted.sha256,
        "model": answer.model,
        "model_sha256": card.lineage.model_sha256,
        **watched.measure(noted.facts, scores),
        **answer_columns.of_answer(card, answer),
        "disclaimer": card.disclaimer,
    }


def day_of(row: Row) -> date:
    """Day of the prediction, in UTC."""
    return datetime.fromtimestamp(row["time"] / _MICROSECONDS, UTC).date()


def to_parquet(card: ModelCard, rows: Sequence[Row]) -> bytes:
    """A Parquet file with these rows of the card's model."""
    return tables.to_parquet(tables.to_batch(rows, schema(card.classes)))
