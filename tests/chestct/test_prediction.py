import numpy as np
import pytest
from pydantic import ValidationError

from chestct.card import DISCLAIMER
from chestct.prediction import RULES, WARNINGS, decide
from tests.graphs import OOD_LIMIT, tiny_card

CARD = tiny_card()  # refer_margin 0.2, any_cancer 0.3, conformal_quantile 0.8


def answer(*probabilities: float, ood_score: float = 0.0, card=CARD, **more):
    return decide(card, np.array(probabilities, np.float32), ood_score, request_id="r", model="chestct:t", **more)


def test_a_clear_cancer_is_accepted():
    prediction = answer(0.9, 0.05, 0.02, 0.03)
    assert (prediction.decision, prediction.label, prediction.reasons) == ("accept", "adenocarcinoma", ())
    assert prediction.confidence == pytest.approx(0.9)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.disclaimer == DISCLAIMER


def test_two_close_classes_are_referred_with_the_most_probable_as_label():
    prediction = answer(0.45, 0.05, 0.05, 0.45001)
    assert (prediction.decision, prediction.label) == ("refer", "squamous_cell_carcinoma")
    assert prediction.reasons == ("close_call",)


def test_normal_is_referred_when_the_cancers_together_are_probable():
    prediction = answer(0.12, 0.12, 0.65, 0.11)
    assert (prediction.decision, prediction.label, prediction.reasons) == ("refer", "normal", ("possible_cancer",))
    assert answer(0.08, 0.08, 0.75, 0.09).decision == "accept"


def test_the_any_cancer_rule_speaks_only_where_the_label_is_normal():
    assert answer(0.65, 0.12, 0.12, 0.11).decision == "accept"


def test_every_rule_that_refers_is_named():
    assert answer(0.4, 0.05, 0.45, 0.1).reasons == ("close_call", "possible_cancer")


def test_what_is_no_chest_ct_gets_no_label_whatever_else_holds():
    prediction = answer(0.4, 0.05, 0.45, 0.1, ood_score=OOD_LIMIT + 0.01)
    assert prediction.decision == "reject"
    assert (prediction.label, prediction.confidence, prediction.prediction_set) == (None, None, ())
    assert prediction.reasons == ("out_of_distribution",)


def test_the_limit_itself_is_not_rejected():
    assert answer(0.9, 0.05, 0.02, 0.03, ood_score=OOD_LIMIT).decision == "accept"


def test_the_prediction_set_is_ordered_and_never_empty():
    assert answer(0.25, 0.05, 0.3, 0.4).prediction_set == ("squamous_cell_carcinoma", "normal", "adenocarcinoma")
    strict = CARD.model_copy(update={"thresholds": CARD.thresholds.model_copy(update={"conformal_quantile": 0.01})})
    assert answer(0.9, 0.05, 0.02, 0.03, card=strict).prediction_set == ("adenocarcinoma",)


def test_a_model_of_phantoms_warns_in_every_answer():
    prediction = answer(0.9, 0.05, 0.02, 0.03, card=tiny_card(data_source="synthetic"), warnings=("pixels_input",))
    assert prediction.warnings == ("synthetic_model", "pixels_input")
    assert set(prediction.warnings) <= set(WARNINGS)


def test_a_prediction_cannot_be_changed():
    with pytest.raises(ValidationError):
        answer(0.9, 0.05, 0.02, 0.03).label = "normal"


def test_every_rule_has_a_name_of_its_own_and_words():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.words.endswith(".") for rule in RULES)
