"""The model's scores and the card's numbers to an answer: accept, refer or reject, and why."""

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import DISCLAIMER, Frozen, ModelCard, Probability, Thresholds

Decision = Literal["accept", "refer", "reject"]


class Prediction(Frozen):
    """One image's answer, on every protocol."""

    request_id: str
    decision: Decision
    """`accept`: the label stands; `refer`: a person should look; `reject`: not a chest CT, no label."""
    label: str | None
    """The most probable class; null when rejected."""
    confidence: Probability | None
    """The label's probability; null when rejected."""
    probabilities: dict[str, Probability]
    ood_score: float
    prediction_set: tuple[str, ...]
    """The classes that the split-conformal set holds at the card's coverage; empty when rejected."""
    reasons: tuple[str, ...]
    """Names of the rules that made it `refer` or `reject`; RULES has each in words."""
    warnings: tuple[str, ...]
    """Names of the warnings that hold for this answer; WARNINGS has each in words."""
    model: str
    """Tag in the BentoML model store."""
    disclaimer: str = DISCLAIMER
    heatmaps: dict[str, str] | None = None
    """On request: a class's heat map as a grey PNG, base64; brighter speaks more for the class."""
    preview: str | None = None
    """On request: the pixels the model saw as a PNG, base64."""


class Evidence(NamedTuple):
    """What a rule looks at: one image's scores and the numbers fitted for the model."""

    probabilities: NDArray[np.floating]
    """[classes], in the card's order."""
    ood_score: float
    normal: int
    """Index of the class that is no cancer."""
    thresholds: Thresholds


class Rule(NamedTuple):
    """A domain rule after the prediction: where `fires` holds, the answer becomes `decision`; `words` says why."""

    name: str
    decision: Literal["refer", "reject"]
    fires: Callable[[Evidence], bool]
    words: str


def _out_of_distribution(evidence: Evidence) -> bool:
    return evidence.ood_score > evidence.thresholds.ood_limit


def _close_call(evidence: Evidence) -> bool:
    second, first = np.sort(evidence.probabilities)[-2:]
    return bool(first - second < evidence.thresholds.refer_margin)


def _possible_cancer(evidence: Evidence) -> bool:
    if int(np.argmax(evidence.probabilities)) != evidence.normal:
        return False
    cancer = float(evidence.probabilities.sum() - evidence.probabilities[evidence.normal])
    return cancer >= evidence.thresholds.any_cancer


RULES: Final = (
    Rule(
        "out_of_distribution",
        "reject",
        _out_of_distribution,
        "The picture is unlike the chest-CT slices the model knows, so it gives no label.",
    ),
    Rule(
        "close_call",
        "refer",
        _close_call,
        "The two most probable classes are too close to call.",
    ),
    Rule(
        "possible_cancer",
        "refer",
        _possible_cancer,
        "Normal is the most probable class, but the cancers together are too probable to rule out.",
    ),
)

WARNINGS: Final = {
    "synthetic_model": "This model was trained on drawn phantoms. Its answers mean nothing for a real CT.",
    "pixels_input": "Pixels came instead of an image file, so rules about the original picture did not run.",
}


def judge(evidence: Evidence) -> tuple[Decision, tuple[Rule, ...]]:
    """The decision and the rules that made it. Every rule that fires is named; reject outranks refer."""
    fired = [rule for rule in RULES if rule.fires(evidence)]
    decisions = {rule.decision for rule in fired}
    decision: Decision = "reject" if "reject" in decisions else "refer" if "refer" in decisions else "accept"
    return decision, tuple(rule for rule in fired if rule.decision == decision)


def prediction_set(evidence: Evidence) -> tuple[int, ...]:
    """Indices of the classes in the split-conformal set, most probable first.

    Never empty, since an answer names at least its label.
    """
    floor = 1 - evidence.thresholds.conformal_quantile
    order = np.argsort(-evidence.probabilities, kind="stable")
    return tuple(int(i) for rank, i in enumerate(order) if rank == 0 or evidence.probabilities[i] >= floor)


def decide(
    card: ModelCard,
    probabilities: NDArray[np.float32],
    ood_score: float,
    *,
    request_id: str,
    model: str,
    warnings: Sequence[str] = (),
    heatmaps: dict[str, str] | None = None,
    preview: str | None = None,
) -> Prediction:
    """Turn one image's scores into its answer.

    `probabilities` float32 [classes] in the card's order, summing to 1; `ood_score` as the graph gives it; `warnings`
    are added to those that the card implies.
    """
    evidence = Evidence(probabilities, ood_score, card.classes.index(card.normal), card.thresholds)
    decision, rules = judge(evidence)
    best = int(np.argmax(probabilities))
    rejected = decision == "reject"
    return Prediction(
        request_id=request_id,
        decision=decision,
        label=None if rejected else card.classes[best],
        confidence=None if rejected else float(probabilities[best]),
        probabilities={name: float(p) for name, p in zip(card.classes, probabilities, strict=True)},
        ood_score=ood_score,
        prediction_set=() if rejected else tuple(card.classes[i] for i in prediction_set(evidence)),
        reasons=tuple(rule.name for rule in rules),
        warnings=(*(("synthetic_model",) if card.synthetic else ()), *warnings),
        model=model,
        disclaimer=card.disclaimer,
        heatmaps=heatmaps,
        preview=preview,
    )
