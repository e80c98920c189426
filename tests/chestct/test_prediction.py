"""The decision on one image: which rules fire, and what they do to its label."""

import numpy as np
import pytest
from pydantic import ValidationError

from chestct.card import DISCLAIMER
from chestct.image import Facts
from chestct.prediction import RULES, WARNINGS, decide
from tests.graphs import CHEST_CT_LIMIT, OOD_LIMIT, plain_facts, tiny_card

PLAIN = plain_facts()
CARD = tiny_card()  # refer_margin 0.2, any_cancer 0.3, conformal_quantile 0.8


def answer(
    *probabilities: float, ood_score: float = 0.0, chest_ct: float = 1.0, card=CARD, facts: Facts | None = PLAIN
):
    levels = np.array(probabilities, np.float32)
    return decide(card, levels, ood_score, chest_ct, facts, request_id="r", model="chestct:t")


def test_a_clear_cancer_is_accepted():
    prediction = answer(0.9, 0.05, 0.02, 0.03)
    assert (prediction.decision, prediction.label, prediction.reasons) == ("accept", "adenocarcinoma", ())
    assert prediction.confidence == pytest.approx(0.9)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.disclaimer == DISCLAIMER


def test_two_close_classes_are_referred_with_the_most_probable_as_label():
    prediction = answer(0.45, 0.05, 0.05, 0.45001)
    assert (prediction.decision, prediction.label) == ("refer", "squamous_cell_carcinoma")
    assert prediction.reasons == ("two_cancers",)
    assert prediction.between == ("squamous_cell_carcinoma", "adenocarcinoma")


def test_normal_is_referred_when_the_cancers_together_are_probable():
    prediction = answer(0.12, 0.12, 0.65, 0.11)
    assert (prediction.decision, prediction.label, prediction.reasons) == ("refer", "normal", ("possible_cancer",))
    assert answer(0.08, 0.08, 0.75, 0.09).decision == "accept"


def test_the_any_cancer_rule_fires_only_for_the_label_normal():
    assert answer(0.65, 0.12, 0.12, 0.11).decision == "accept"


def test_every_rule_that_refers_is_named():
    prediction = answer(0.4, 0.05, 0.45, 0.1)
    assert prediction.reasons == ("close_call", "possible_cancer")
    assert prediction.between == ("normal", "adenocarcinoma")


UNFAMILIAR = {"ood_score": OOD_LIMIT + 0.01}
NO_CHEST_CT = {"chest_ct": CHEST_CT_LIMIT - 0.01}


def test_an_unfamiliar_chest_ct_is_referred_without_a_label_and_for_no_other_reason():
    prediction = answer(0.4, 0.05, 0.45, 0.1, **UNFAMILIAR)  # by its probabilities a close call and a possible cancer
    assert (prediction.decision, prediction.reasons) == ("refer", ("unfamiliar",))
    assert (prediction.label, prediction.confidence) == (None, None)
    assert (prediction.prediction_set, prediction.between) == ((), ())


def test_a_picture_that_is_no_chest_ct_is_rejected():
    prediction = answer(0.4, 0.05, 0.45, 0.1, **NO_CHEST_CT)
    assert (prediction.decision, prediction.reasons) == ("reject", ("not_chest_ct",))
    assert (prediction.label, prediction.confidence) == (None, None)
    assert (prediction.prediction_set, prediction.between) == ((), ())


@pytest.mark.parametrize("scores", [UNFAMILIAR, NO_CHEST_CT], ids=["unfamiliar", "rejected"])
def test_probabilities_without_a_label_stay_and_are_called_meaningless(scores):
    prediction = answer(0.9, 0.05, 0.02, 0.03, **scores)
    assert list(prediction.probabilities.values()) == pytest.approx([0.9, 0.05, 0.02, 0.03])
    assert prediction.warnings == ("meaningless_probabilities",)
    assert answer(0.4, 0.05, 0.45, 0.1).warnings == (), "a label that is referred has probabilities that mean something"


def test_what_is_both_no_chest_ct_and_unfamiliar_is_rejected_as_no_chest_ct():
    prediction = answer(0.9, 0.05, 0.02, 0.03, **UNFAMILIAR, **NO_CHEST_CT)
    assert (prediction.decision, prediction.reasons) == ("reject", ("not_chest_ct",))


def test_the_words_of_an_unfamiliar_slice_do_not_deny_that_it_is_a_chest_ct():
    words = {rule.name: rule.words for rule in RULES}
    assert words["unfamiliar"] == ("A chest CT unlike those the model was trained on. It has no basis for a label.")


def test_the_limits_themselves_are_accepted():
    prediction = answer(0.9, 0.05, 0.02, 0.03, ood_score=OOD_LIMIT, chest_ct=CHEST_CT_LIMIT)
    assert (prediction.decision, prediction.label) == ("accept", "adenocarcinoma")
    assert (prediction.ood_score, prediction.chest_ct) == (OOD_LIMIT, CHEST_CT_LIMIT)


def test_the_prediction_set_is_ordered_and_never_empty():
    assert answer(0.25, 0.05, 0.3, 0.4).prediction_set == ("squamous_cell_carcinoma", "normal", "adenocarcinoma")
    strict = CARD.model_copy(update={"thresholds": CARD.thresholds.model_copy(update={"conformal_quantile": 0.01})})
    assert answer(0.9, 0.05, 0.02, 0.03, card=strict).prediction_set == ("adenocarcinoma",)


def test_a_model_of_phantoms_warns_in_every_answer():
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=tiny_card(data_source="synthetic"), facts=None)
    assert prediction.warnings == ("synthetic_model", "pixels_input")
    assert set(prediction.warnings) <= set(WARNINGS)


def test_a_prediction_cannot_be_changed():
    with pytest.raises(ValidationError):
        answer(0.9, 0.05, 0.02, 0.03).label = "normal"


def test_every_rule_has_a_name_of_its_own_and_words():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.words.endswith(".") for rule in RULES)


def with_thresholds(**changes):
    return CARD.model_copy(update={"thresholds": CARD.thresholds.model_copy(update=changes)})


def test_a_label_below_its_classs_threshold_is_referred_and_stays_the_label():
    card = with_thresholds(least_confidence=(0.95, 0.0, 0.0, 0.0))
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=card)
    assert (prediction.decision, prediction.label) == ("refer", "adenocarcinoma")
    assert (prediction.reasons, prediction.between) == (("below_threshold",), ())
    assert answer(0.05, 0.9, 0.02, 0.03, card=card).decision == "accept"


LAYOUT_OF_CT = np.arange(64.0).reshape(8, 8)
STRICT = CARD.model_copy(
    update={
        "input_limits": CARD.input_limits.model_copy(
            update={
                "min_contrast": 10,
                "max_frame": 0.6,
                "max_negative_likeness": 0.15,
                "average_layout": tuple(LAYOUT_OF_CT.ravel()),
            }
        )
    }
)
SLICE = plain_facts(layout=LAYOUT_OF_CT)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (SLICE._replace(colour=31.0), "not_grey"),
        (SLICE._replace(width=15, height=20), "too_small"),
        (SLICE._replace(height=15, width=20), "too_small"),
        (SLICE._replace(width=1201), "extreme_aspect"),
        (SLICE._replace(height=1601), "extreme_aspect"),
        (SLICE._replace(contrast=9.9), "blank"),
        (SLICE._replace(bodies=0), "no_body"),
        (SLICE._replace(bodies=2), "several_bodies"),
        (SLICE._replace(layout=255 - LAYOUT_OF_CT, negative=LAYOUT_OF_CT), "inverted"),
        (SLICE._replace(bodies=3, negative=LAYOUT_OF_CT, negative_bodies=1), "inverted"),
        (SLICE._replace(bodies=0, layout=255 - LAYOUT_OF_CT, negative=LAYOUT_OF_CT), "inverted"),
        (SLICE._replace(bodies=2, layout=255 - LAYOUT_OF_CT, negative=LAYOUT_OF_CT), "inverted"),
        (SLICE._replace(frame=0.61), "screenshot_frame"),
    ],
)
def test_a_picture_that_is_no_ct_slice_is_rejected_with_the_reason(facts, reason):
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=STRICT, facts=facts)
    assert (prediction.decision, prediction.label, prediction.reasons) == ("reject", None, (reason,))


@pytest.mark.parametrize(
    "facts",
    [
        SLICE,
        SLICE._replace(colour=30.0, frame=0.6, contrast=10.0),
        SLICE._replace(width=1200),
        SLICE._replace(layout=np.full((8, 8), 7.0)),
        SLICE._replace(layout=255 - LAYOUT_OF_CT),
        SLICE._replace(negative=LAYOUT_OF_CT),
    ],
)
def test_a_slice_at_the_limits_is_answered(facts):
    assert answer(0.9, 0.05, 0.02, 0.03, card=STRICT, facts=facts).decision == "accept"


def test_rules_on_the_input_skip_pixels_and_the_answer_warns_of_it():
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=STRICT, facts=None)
    assert (prediction.decision, prediction.warnings) == ("accept", ("pixels_input",))


def test_every_reason_to_reject_is_named_and_none_to_refer():
    framed = SLICE._replace(colour=99.0, frame=1.0)
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=STRICT, facts=framed, **UNFAMILIAR, **NO_CHEST_CT)
    assert prediction.reasons == ("not_grey", "screenshot_frame", "not_chest_ct")
    assert answer(0.9, 0.05, 0.02, 0.03, card=STRICT, facts=framed, **UNFAMILIAR).decision == "reject"
