"""The rows of the table: their columns, and how an answer or an error becomes one."""

import os
from typing import Final

import numpy as np

from archive.models import Model
from chestct import tables
from chestct.card import DISCLAIMER
from chestct.prediction import Prediction, cancer_probability
from chestct.tables import NUMBER, TEXT, Row, Schema

FIRST: Final = {
    "file": TEXT,
    "sha256": TEXT,
    "error": TEXT,
    "message": TEXT,
    "decision": TEXT,
    "label": TEXT,
    "confidence": NUMBER,
    "any_cancer": NUMBER,
    "chest_ct": NUMBER,
    "ood_score": NUMBER,
}
LAST: Final = {
    "prediction_set": TEXT,
    "between": TEXT,
    "reasons": TEXT,
    "warnings": TEXT,
    "series": TEXT,
    "model": TEXT,
    "model_sha256": TEXT,
    "seconds": NUMBER,
    "disclaimer": TEXT,
}
"""The columns before and after those of the classes. Several names in one text are separated by a space."""


def probability(name: str) -> str:
    """The column of a class."""
    return f"p_{name}"


def schema(classes: tuple[str, ...]) -> Schema:
    """The table's schema for a model of these classes."""
    columns = {**FIRST, **{probability(name): NUMBER for name in classes}, **LAST}
    return tables.schema(columns, {"disclaimer": DISCLAIMER})


def of_answer(model: Model, answer: Prediction) -> Row:
    """The columns of an answer."""
    probabilities = np.array(list(answer.probabilities.values()))
    cancer = cancer_probability(probabilities, model.card.classes.index(model.card.normal))
    return {
        "decision": answer.decision,
        "label": answer.label,
        "confidence": answer.confidence,
        "any_cancer": float(cancer),
        "chest_ct": answer.chest_ct,
        "ood_score": answer.ood_score,
        **{probability(name): p for name, p in answer.probabilities.items()},
        "prediction_set": " ".join(answer.prediction_set),
        "between": " ".join(answer.between),
        "reasons": " ".join(answer.reasons),
        "warnings": " ".join(answer.warnings),
    }


def of_file(model: Model, file: str) -> Row:
    """The columns that every row has."""
    return {
        "file": readable(file),
        "model": model.tag,
        "model_sha256": model.card.lineage.model_sha256,
        "disclaimer": model.card.disclaimer,
    }


def readable(name: str) -> str:
    r"""A file's name as text. Bytes that are no UTF-8 become \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
