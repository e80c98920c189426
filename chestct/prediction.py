"""Turns the scores of an image into an answer by the numbers in the card: accept, refer or reject, and why."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.card import DISCLAIMER, InputLimits, ModelCard, Probability, Thresholds
from chestct.document import Frozen
from chestct.image import Facts

Decision = Literal["accept", "refer", "reject"]


class Prediction(Frozen):
    """The answer for one image, the same over every protocol."""

    request_id: str
    decision: Decision
    """`accept`: the label is the answer; `refer`: a person should look; `reject`: no chest CT slice, or an unusable
    one."""
    label: str | None
    """The most probable class. Null if the label is withheld: rejected, or referred as `unfamiliar`."""
    confidence: Probability | None
    """The label's probability; null without a label."""
    probabilities: dict[str, Probability]
    """By class. Without a label they mean nothing, of which `meaningless_probabilities` warns."""
    ood_score: float
    """Out-of-distribution score: the higher, the less the picture is like the training images."""
    chest_ct: Probability
    """Probability that the picture is a chest CT slice, of any source and in any window."""
    prediction_set: tuple[str, ...]
    """The classes that the true one should be among, at the card's coverage. Calibrated out of fold, without a
    guarantee; empty without a label."""
    between: tuple[str, ...]
    """The two classes of a close call, the more probable first; empty if it is none, or without a label."""
    reasons: tuple[str, ...]
    """Names of the rules that made it `refer` or `reject`. RULES explains each."""
    warnings: tuple[str, ...]
    """Names of the warnings about this answer. WARNINGS explains each."""
    model: str
    """Tag in the BentoML model store."""
    disclaimer: str = DISCLAIMER
    heatmaps: dict[str, str] | None = None
    """On request: each class's heat map as a grey PNG in base64. Brighter is more evidence for the class."""
    preview: str | None = None
    """On request: the pixels that the model saw as a PNG in base64."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The input of a rule: facts and scores of one image, and numbers of the model."""

    probabilities: NDArray[np.floating]
    """[classes], in the card's order."""
    ood_score: float
    chest_ct: float
    normal: int
    """Index of the class that is no cancer."""
    thresholds: Thresholds
    facts: Facts | None
    """None if the request had pixels instead of a picture. Rules on the input then do not fire."""
    limits: InputLimits

    @cached_property
    def label(self) -> int:
        """Index of the most probable class."""
        return int(np.argmax(self.probabilities))

    @cached_property
    def between(self) -> tuple[int, ...]:
        """Indices of the two most probable classes, the first one first, if too close to call; otherwise empty."""
        second, first = (int(index) for index in np.argsort(self.probabilities, kind="stable")[-2:])
        margin = self.probabilities[first] - self.probabilities[second]
        return (first, second) if margin < self.thresholds.refer_margin else ()


class Rule(NamedTuple):
    """If `fires` is true, the answer becomes `decision`, and `words` says why."""

    name: str
    decision: Literal["refer", "reject"]
    fires: Callable[[Evidence], bool]
    words: str
    on: Literal["input", "prediction"] = "prediction"
    withholds: bool = False
    """Whether a referral has no label. No other rule that refers is then a reason. A rejection never has a label."""


def likeness(layout: NDArray[np.floating], limits: InputLimits) -> float:
    """Correlation of a coarse picture with the average one; 0 for a picture without contrast."""
    levels, average = (values - values.mean() for values in (layout.ravel(), np.asarray(limits.average_layout)))
    length = math.sqrt((levels @ levels) * (average @ average))
    return float(levels @ average) / length if length else 0.0


def inverted(facts: Facts, limits: InputLimits) -> bool:
    """Whether the negative is clearly more like a slice than the picture itself, or alone shows one body."""
    if not facts.negative.any():
        return False
    if facts.negative_bodies == 1 != facts.bodies:
        return True
    gained = likeness(facts.negative, limits) - likeness(facts.layout, limits)
    return gained > limits.max_negative_likeness


def cancer_probability(probabilities: NDArray[np.floating], normal: int) -> NDArray[np.floating]:
    """Sum of the cancers' probabilities, [...], of `probabilities` [..., classes], which sum to 1."""
    return np.asarray(1 - probabilities[..., normal])


def possible_cancer(evidence: Evidence) -> bool:
    """Whether the label is normal although the cancers together are too probable."""
    if evidence.label != evidence.normal:
        return False
    return float(cancer_probability(evidence.probabilities, evidence.normal)) >= evidence.thresholds.any_cancer


def _on_input(name: str, fires: Callable[[Facts, InputLimits], bool], words: str) -> Rule:
    """A rule that rejects a picture by the facts about it."""
    return Rule(name, "reject", lambda e: e.facts is not None and fires(e.facts, e.limits), words, on="input")


RULES: Final = (
    _on_input(
        "not_grey",
        lambda facts, limits: facts.colour > limits.max_colour,
        "The picture has colours; a CT slice is grey.",
    ),
    _on_input(
        "too_small",
        lambda facts, limits: min(facts.width, facts.height) < limits.min_side,
        "The picture has too few pixels on a side to show what a CT slice shows.",
    ),
    _on_input(
        "extreme_aspect",
        lambda facts, limits: max(facts.width, facts.height) > limits.max_aspect * min(facts.width, facts.height),
        "The picture is a strip, longer than any CT slice is.",
    ),
    _on_input(
        "blank",
        lambda facts, limits: facts.contrast < limits.min_contrast,
        "The picture shows next to nothing: its grey levels are almost all the same.",
    ),
    _on_input(
        "no_body",
        lambda facts, limits: facts.bodies == 0 and not inverted(facts, limits),
        "No body is found in the picture.",
    ),
    _on_input(
        "several_bodies",
        lambda facts, limits: facts.bodies > 1 and not inverted(facts, limits),
        "The picture shows several slices side by side. Cut it down to one slice.",
    ),
    _on_input(
        "inverted",
        inverted,
        "Light and dark seem exchanged: in a CT slice air is dark and bone light.",
    ),
    _on_input(
        "screenshot_frame",
        lambda facts, limits: facts.frame > limits.max_frame,
        "A flat area frames the picture, as in a screenshot. Cut it down to the slice.",
    ),
    Rule(
        "not_chest_ct",
        "reject",
        lambda evidence: evidence.chest_ct < evidence.thresholds.chest_ct_limit,
        "The picture does not look like a chest CT slice.",
    ),
    Rule(
        "unfamiliar",
        "refer",
        lambda evidence: evidence.ood_score > evidence.thresholds.ood_limit,
        "A chest CT unlike those the model was trained on. It has no basis for a label.",
        withholds=True,
    ),
    Rule(
        "close_call",
        "refer",
        lambda evidence: evidence.normal in evidence.between,
        "The two most probable classes, normal and a cancer, are too close to call.",
    ),
    Rule(
        "two_cancers",
        "refer",
        lambda evidence: bool(pair := evidence.between) and evidence.normal not in pair,
        "The two most probable classes, both cancers, are too close to call.",
    ),
    Rule(
        "possible_cancer",
        "refer",
        possible_cancer,
        "Normal is the most probable class, but the cancers together are too probable to rule out.",
    ),
    Rule(
        "below_threshold",
        "refer",
        lambda e: bool(e.probabilities[e.label] < e.thresholds.least_confidence[e.label]),
        "The label is less probable than this class must be to stand.",
    ),
)

WARNINGS: Final = {
    "synthetic_model": "This model was trained on drawn phantoms. Its answers mean nothing for a real CT.",
    "pixels_input": "Pixels came instead of an image file, so rules about the original picture did not run.",
    "meaningless_probabilities": "The answer has no label, so its probabilities mean nothing.",
}


def judge(evidence: Evidence) -> tuple[Decision, tuple[Rule, ...]]:
    """The decision, and the rules that led to it.

    Reject outranks refer, and a referral without a label outranks the others. All rules of the highest rank are named.
    """
    fired = [rule for rule in RULES if rule.fires(evidence)]
    if rejecting := tuple(rule for rule in fired if rule.decision == "reject"):
        return "reject", rejecting
    if withholding := tuple(rule for rule in fired if rule.withholds):
        return "refer", withholding
    return "refer" if fired else "accept", tuple(fired)


def prediction_set(evidence: Evidence) -> tuple[int, ...]:
    """Indices of the classes in the prediction set, most probable first. The set holds at least the label."""
    floor = 1 - evidence.thresholds.conformal_quantile
    order = np.argsort(-evidence.probabilities, kind="stable")
    return tuple(int(i) for rank, i in enumerate(order) if rank == 0 or evidence.probabilities[i] >= floor)


def decide(
    card: ModelCard,
    probabilities: NDArray[np.float32],
    ood_score: float,
    chest_ct: float,
    facts: Facts | None,
    *,
    request_id: str,
    model: str,
    heatmaps: dict[str, str] | None = None,
    preview: str | None = None,
) -> Prediction:
    """Turn the scores of one image into its answer.

    `probabilities` is float32 [classes] in the card's order, sum 1. `ood_score` and `chest_ct` are the graph's
    outputs. `facts` come from chestct.image.decode, or are None if the request had pixels, of which the answer then
    warns.
    """
    normal = card.classes.index(card.normal)
    evidence = Evidence(probabilities, ood_score, chest_ct, normal, card.thresholds, facts, card.input_limits)
    decision, rules = judge(evidence)
    withheld = decision == "reject" or any(rule.withholds for rule in rules)
    return Prediction(
        request_id=request_id,
        decision=decision,
        label=None if withheld else card.classes[evidence.label],
        confidence=None if withheld else float(probabilities[evidence.label]),
        probabilities=dict(zip(card.classes, probabilities.tolist(), strict=True)),
        ood_score=ood_score,
        chest_ct=chest_ct,
        prediction_set=() if withheld else tuple(card.classes[i] for i in prediction_set(evidence)),
        between=() if withheld else tuple(card.classes[i] for i in evidence.between),
        reasons=tuple(rule.name for rule in rules),
        warnings=(
            *(("synthetic_model",) if card.synthetic else ()),
            *(("pixels_input",) if facts is None else ()),
            *(("meaningless_probabilities",) if withheld else ()),
        ),
        model=model,
        disclaimer=card.disclaimer,
        heatmaps=heatmaps,
        preview=preview,
    )
