"""The gate of an arithmetic: what it compares, its intervals, and which of their ends must keep the bound."""

import numpy as np
import pytest

from chestct.card import Estimate
from pipeline.graph.rounding_gate import Answered, agreement, compare, describe, find_missed
from pipeline.judging.calibration import Answers
from tests.pipeline.conftest import small_params

WANTED = small_params().export.model_copy(
    update={"max_accuracy_fall": 0.01, "max_loss_rise": 0.02, "min_agreement": 0.98, "min_same_decision": 0.97}
)
KEPT = {"released_agreement": 0.98, "released_same_decision": 0.97}
LABELS = np.arange(8) % 4
SCANS = np.arange(8) // 2


def answers(best: list[int], rejected: tuple[int, ...] = ()) -> Answers:
    """Sure of class `best` of each image."""
    probabilities = np.full((len(best), 4), 0.01)
    probabilities[np.arange(len(best)), best] = 0.97
    reject = np.isin(np.arange(len(best)), rejected)
    return Answers(
        probabilities, ~reject, reject, np.zeros_like(reject), probabilities > 0.5, np.zeros(len(best), bool)
    )


def answered(best: list[int], rejected: tuple[int, ...] = (), unfamiliar: tuple[int, ...] = ()) -> Answered:
    """Eight slices and two other pictures."""
    numbers = np.arange(10)
    return Answered(answers(best, rejected), np.isin(numbers, rejected), np.isin(numbers, unfamiliar))


GROUPS = np.append(SCANS, [-1, -2])
EXACT = answered([0, 1, 2, 3, 0, 1, 2, 3], rejected=(0,), unfamiliar=(9,))


def test_labels_decisions_and_both_refusals_are_compared_over_all_draws() -> None:
    one = answered([0, 1, 2, 3, 0, 1, 2, 0], rejected=(0, 1), unfamiliar=(9,))
    other = answered([0, 1, 2, 3, 0, 1, 2, 3], rejected=(0, 8), unfamiliar=())
    figures = compare(EXACT, [one, other], LABELS, GROUPS, 200, 0)
    assert figures["agreement"].value == 15 / 16
    assert figures["same_decision"].value == 15 / 16
    assert figures["same_not_chest_ct"].value == pytest.approx(18 / 20)
    assert figures["same_unfamiliar"].value == 19 / 20
    assert figures["accuracy_fall"].value == 1 / 16
    assert figures["loss_rise"].value == pytest.approx(np.log(97) / 16)


def test_an_interval_resamples_scans_and_draws() -> None:
    wrong = answered([1, 2, 2, 3, 0, 1, 2, 3], rejected=(0,), unfamiliar=(9,))
    same = compare(EXACT, [wrong, wrong], LABELS, GROUPS, 2000, 0)["accuracy_fall"]
    assert (same.value, same.low, same.high) == (0.25, 0, 0.75), "one scan of four, drawn never to three times"
    lucky = compare(EXACT, [wrong, EXACT, EXACT], LABELS, GROUPS, 2000, 0)["accuracy_fall"]
    assert lucky.value == pytest.approx(0.25 / 3)
    assert lucky.high > 0.25, "the draw that errs may be drawn more than once"


def test_what_never_changed_has_the_exact_interval_of_its_number_of_pictures() -> None:
    figures = compare(EXACT, [EXACT], LABELS, GROUPS, 200, 0)
    assert figures["agreement"].value == figures["agreement"].high == 1
    assert figures["agreement"].low == pytest.approx(0.025 ** (1 / 8))
    assert figures["same_unfamiliar"].low == pytest.approx(0.025 ** (1 / 10))
    assert figures["accuracy_fall"] == figures["loss_rise"] == Estimate(value=0, low=0, high=0)


def test_figures_of_both_sides_are_described() -> None:
    worse = answers([0, 1, 2, 3, 0, 1, 2, 0], rejected=(0, 1))
    figures = describe(EXACT.slices, [worse, EXACT.slices], LABELS)
    assert (figures["float32_accuracy"], figures["served_accuracy"]) == (1, 15 / 16)
    assert (figures["float32_rejected"], figures["served_rejected"]) == (1 / 8, 3 / 16)
    assert figures["served_calibration_error"] > figures["float32_calibration_error"]


def test_agreement_is_of_the_most_probable_classes() -> None:
    assert agreement(np.array([[0.6, 0.4], [0.1, 0.9]]), np.array([[0.9, 0.1], [0.8, 0.2]])) == 0.5


def within(**changed: tuple[float, float, float]) -> dict[str, Estimate]:
    """Figures at their bounds, but for those that are `changed` to a value and the ends of its interval."""
    triples = {"agreement": (0.99, 0.98, 1), "accuracy_fall": (0, -0.01, 0.01), "loss_rise": (0, -0.02, 0.02)}
    triples |= dict.fromkeys(("same_decision", "same_not_chest_ct", "same_unfamiliar"), (0.99, 0.97, 1))
    named = {name: zip(("value", "low", "high"), triple, strict=True) for name, triple in (triples | changed).items()}
    return {name: Estimate(**dict(triple)) for name, triple in named.items()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"agreement": (0.99, 0.979, 1)}, "agreement may be as low as 0.9790 (at least 0.98)"),
        ({"same_decision": (0.99, 0.969, 1)}, "same_decision may be as low as 0.9690 (at least 0.97)"),
        ({"same_not_chest_ct": (0.99, 0.9, 1)}, "same_not_chest_ct may be as low as 0.9000 (at least 0.97)"),
        ({"same_unfamiliar": (0.99, 0.9, 1)}, "same_unfamiliar may be as low as 0.9000 (at least 0.97)"),
        ({"accuracy_fall": (0, -0.1, 0.011)}, "accuracy_fall may be as high as 0.0110 (at most 0.01)"),
        ({"loss_rise": (0, -0.1, 0.021)}, "loss_rise may be as high as 0.0210 (at most 0.02)"),
    ],
)
def test_the_worse_end_of_each_interval_has_to_keep_its_bound(
    changed: dict[str, tuple[float, float, float]], words: str
) -> None:
    assert find_missed(within(), KEPT, WANTED) == []
    assert find_missed(within(**changed), KEPT, WANTED) == [words]


def test_the_released_network_has_to_keep_its_labels_and_decisions_too() -> None:
    assert find_missed(within(), KEPT | {"released_agreement": 0.97}, WANTED) == [
        "released_agreement is 0.9700 (at least 0.98)"
    ]
    assert find_missed(within(), KEPT | {"released_same_decision": 0.96}, WANTED) == [
        "released_same_decision is 0.9600 (at least 0.97)"
    ]
