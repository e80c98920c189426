"""Makes answered slices without a model, a file or an engine."""

from pathlib import Path

import numpy as np

from chestct.prediction import decide
from pipeline.foreign.answering import Answered
from pipeline.foreign.folders import SliceFile
from tests.graphs import plain_facts, tiny_card

CARD = tiny_card()
"""An answer is unfamiliar from an `ood_score` of 0.9, and no chest CT below a `chest_ct` of 0.25."""


def file(known: str, patient: str = "", *, source: str = "there", name: str = "") -> SliceFile:
    """A file of a patient. Without one, it is a patient of its own."""
    name = name or f"{known}-{patient}.png"
    return SliceFile(Path(name), name, source, known, patient or name, alone=not patient)


def answered(
    where: SliceFile, *logits: float, ood_score: float = 0.5, chest_ct: float = 1, colour: float = 0, sha256: str = "ab"
) -> Answered:
    """The answer of a model with CARD, whose scaling changes nothing, to these `logits`, one a class."""
    row = np.array(logits, np.float32)
    probabilities = np.exp(row) / np.exp(row).sum()
    facts = plain_facts(colour=colour)
    prediction = decide(CARD, probabilities, ood_score, chest_ct, facts, request_id="r", model="chestct:1")
    return Answered(where, sha256, "", prediction, facts, False, row)


def towards(label: int, by: float = 6) -> tuple[float, ...]:
    """Logits of a sure answer."""
    return tuple(by * (index == label) for index in range(4))


def unreadable(where: SliceFile, problem: str = "undecodable_image: it is corrupt") -> Answered:
    return Answered(where, "", problem, None, None, False, None)
