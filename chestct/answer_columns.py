"""The columns of an answer in a table, the same in the archive's table and in the service's inference log."""

from typing import Final

import numpy as np

from chestct.card import ModelCard
from chestct.prediction import Prediction, cancer_probability
from chestct.tables import NUMBER, TEXT, DataType, Row

_BEFORE: Final = {
    "decision": TEXT,
    "label": TEXT,
    "confidence": NUMBER,
    "any_cancer": NUMBER,
    "chest_ct": NUMBER,
    "ood_score": NUMBER,
}
_AFTER: Final = {
    "prediction_set": TEXT,
    "between": TEXT,
    "reasons": TEXT,
    "warnings": TEXT,
}
"""The columns before and after those of the classes. Several names in one text are separated by a space."""


def columns(classes: tuple[str, ...]) -> dict[str, DataType]:
    """The columns for a model of these classes."""
    return {**_BEFORE, **{f"p_{name}": NUMBER for name in classes}, **_AFTER}


def of_answer(card: ModelCard, answer: Prediction) -> Row:
    """The columns of an answer."""
    probabilities = np.array(list(answer.probabilities.values()))
    return {
        "decision": answer.decision,
        "label": answer.label,
        "confidence": answer.confidence,
        "any_cancer": float(cancer_probability(probabilities, card.classes.index(card.normal))),
        "chest_ct": answer.chest_ct,
        "ood_score": answer.ood_score,
        **{f"p_{name}": p for name, p in answer.probabilities.items()},
        "prediction_set": " ".join(answer.prediction_set),
        "between": " ".join(answer.between),
        "reasons": " ".join(answer.reasons),
        "warnings": " ".join(answer.warnings),
    }
