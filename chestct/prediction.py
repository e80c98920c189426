"""The model's scores and the card's numbers to an answer: accept, refer or reject, and why."""

import math
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import DISCLAIMER, Frozen, InputLimits, ModelCard, Probability, Thresholds
from chestct.image import Facts

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
    between: tuple[str, ...]
    """The two classes that a close call is between, the more probable first; empty where it is none, or rejected."""
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
    """What a rule looks at: one image's facts and scores, and the model's numbers."""

    probabilities: NDArray[np.floating]
    """[classes], in the card's order."""
    ood_score: float
    normal: int
    """Index of the class that is no cancer."""
    thresholds: Thresholds
    facts: Facts | None
    """None where pixels came instead of a picture: the rules on the input then say nothing."""
    limits: InputLimits

    @property
    def label(self) -> int:
        """Index of the most probable class."""
        return int(np.argmax(self.probabilities))


class Rule(NamedTuple):
    """Where `fires` holds, the answer becomes `decision`; `words` says why."""

    name: str
    on: Literal["input", "prediction"]
    decision: Literal["refer", "reject"]
    fires: Callable[[Evidence], bool]
    words: str


def between(evidence: Evidence) -> tuple[int, ...]:
    """Indices of the two most probable classes, the first one first, where they are too close to call; else none."""
    second, first = (int(index) for index in np.argsort(evidence.probabilities, kind="stable")[-2:])
    margin = evidence.probabilities[first] - evidence.probabilities[second]
    return (first, second) if margin < evidence.thresholds.refer_margin else ()


def likeness(facts: Facts, limits: InputLimits) -> float:
    """Correlation of the coarse picture with the average one; 0 for a picture without contrast."""
    levels, average = (values - values.mean() for values in (facts.layout.ravel(), np.asarray(limits.average_layout)))
    length = math.sqrt((levels @ levels) * (average @ average))
    return float(levels @ average) / length if length else 0.0


def cancer_probability(probabilities: NDArray[np.floating], normal: int) -> NDArray[np.floating]:
    """The cancers' summed probability [...] of `probabilities` [..., classes], which sum to 1."""
    return np.asarray(1 - probabilities[..., normal])


def possible_cancer(evidence: Evidence) -> bool:
    """Labelled normal although the cancers together are too probable."""
    if evidence.label != evidence.normal:
        return False
    return float(cancer_probability(evidence.probabilities, evidence.normal)) >= evidence.thresholds.any_cancer


def _on_input(fires: Callable[[Facts, InputLimits], bool]) -> Callable[[Evidence], bool]:
    return lambda evidence: evidence.facts is not None and fires(evidence.facts, evidence.limits)


def _close_call(evidence: Evidence) -> bool:
    return evidence.normal in between(evidence)


def _two_cancers(evidence: Evidence) -> bool:
    pair = between(evidence)
    return bool(pair) and evidence.normal not in pair


def _below_threshold(evidence: Evidence) -> bool:
    return bool(evidence.probabilities[evidence.label] < evidence.thresholds.least_confidence[evidence.label])


RULES: Final = (
    Rule(
        "not_grey",
        "input",
        "reject",
        _on_input(lambda facts, limits: facts.colour > limits.max_colour),
        "The picture has colours; a CT slice is grey.",
    ),
    Rule(
        "too_small",
        "input",
        "reject",
        _on_input(lambda facts, limits: min(facts.width, facts.height) < limits.min_side),
        "The picture has too few pixels on a side to show what a CT slice shows.",
    ),
    Rule(
        "extreme_aspect",
        "input",
        "reject",
        _on_input(
            lambda facts, limits: max(facts.width, facts.height) > limits.max_aspect * min(facts.width, facts.height)
        ),
        "The picture is a strip, longer than any CT slice is.",
    ),
    Rule(
        "blank",
        "input",
        "reject",
        _on_input(lambda facts, limits: facts.contrast < limits.min_contrast),
        "The picture shows next to nothing: its grey levels are almost all the same.",
    ),
    Rule(
        "inverted",
        "input",
        "reject",
        _on_input(lambda facts, limits: likeness(facts, limits) < limits.min_likeness),
        "Light and dark seem exchanged: in a CT slice air is dark and bone light.",
    ),
    Rule(
        "screenshot_frame",
        "input",
        "reject",
        _on_input(lambda facts, limits: facts.frame > limits.max_frame),
        "A flat area frames the picture, as in a screenshot. Cut it down to the slice.",
    ),
    Rule(
        "out_of_distribution",
        "prediction",
        "reject",
        lambda evidence: evidence.ood_score > evidence.thresholds.ood_limit,
        "The picture is unlike the chest-CT slices the model knows, so it gives no label.",
    ),
    Rule(
        "close_call",
        "prediction",
        "refer",
        _close_call,
        "The two most probable classes, normal and a cancer, are too close to call.",
    ),
    Rule(
        "two_cancers",
        "prediction",
        "refer",
        _two_cancers,
        "The two most probable classes, both cancers, are too close to call.",
    ),
    Rule(
        "possible_cancer",
        "prediction",
        "refer",
        possible_cancer,
        "Normal is the most probable class, but the cancers together are too probable to rule out.",
    ),
    Rule(
        "below_threshold",
        "prediction",
        "refer",
        _below_threshold,
        "The label is less probable than this class must be to stand.",
    ),
)

WARNINGS: Final = {
    "synthetic_model": "This model was trained on drawn phantoms. Its answers mean nothing for a real CT.",
    "pixels_input": "Pixels came instead of an image file, so rules about the original picture did not run.",
    "dicom_windowing": "The grey levels come from a DICOM file by a window, which differs from the training pictures'.",
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
    facts: Facts | None,
    *,
    request_id: str,
    model: str,
    heatmaps: dict[str, str] | None = None,
    preview: str | None = None,
) -> Prediction:
    """Turn one image's scores into its answer.

    `probabilities` float32 [classes] in the card's order, summing to 1; `ood_score` as the graph gives it; `facts` of
    the picture as chestct.image.decode measures them, or None where only pixels came, which the answer then warns of.
    """
    evidence = Evidence(
        probabilities, ood_score, card.classes.index(card.normal), card.thresholds, facts, card.input_limits
    )
    decision, rules = judge(evidence)
    rejected = decision == "reject"
    return Prediction(
        request_id=request_id,
        decision=decision,
        label=None if rejected else card.classes[evidence.label],
        confidence=None if rejected else float(probabilities[evidence.label]),
        probabilities={name: float(p) for name, p in zip(card.classes, probabilities, strict=True)},
        ood_score=ood_score,
        prediction_set=() if rejected else tuple(card.classes[i] for i in prediction_set(evidence)),
        between=() if rejected else tuple(card.classes[i] for i in between(evidence)),
        reasons=tuple(rule.name for rule in rules),
        warnings=(
            *(("synthetic_model",) if card.synthetic else ()),
            *(("pixels_input",) if facts is None else ("dicom_windowing",) if facts.windowed else ()),
        ),
        model=model,
        disclaimer=card.disclaimer,
        heatmaps=heatmaps,
        preview=preview,
    )
