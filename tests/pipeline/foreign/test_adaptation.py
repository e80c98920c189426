"""Numbers are refitted on half of a site's patients and judged on the other half."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.special import softmax

from chestct.card import Adaptation, ModelCard, Scaling
from chestct.digests import check_sums, sha256_of
from chestct.engine import Engine
from chestct.store import CARD, GRAPH
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.foreign.adaptation import (
    LEAST_TEMPERATURE,
    Numbers,
    answer_again,
    refit,
    split,
    what_is_missing,
    write_adapted,
)
from pipeline.foreign.answering import UNFAMILIAR, Answered, number_patients, open_model
from pipeline.images.classes import CLASSES, NORMAL
from tests.graphs import tiny_model, tiny_picture
from tests.pipeline.foreign.answered import CARD as BASE
from tests.pipeline.foreign.answered import answered, file, towards, unreadable
from tests.server import ROOT

WANTED = Params.read(ROOT / "params.yaml").evaluate
SIDES = {name: name if name == NORMAL else "cancer" for name in CLASSES}
ORIGIN = Adaptation(base="chestct:1", slices=8, patients=4, data_digest="ab", created="2026-01-01T00:00:00Z")


def site(count: int, *, sureness: float = 1, two: bool = False, seed: int = 0) -> list[Answered]:
    """Slices whose true classes follow from logits, of which the model makes `sureness` times too much."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, len(CLASSES)))
    labels = [CLASSES[rng.choice(len(CLASSES), p=softmax(row))] for row in logits]
    return [
        answered(file(SIDES[label] if two else label, f"P{place}"), *(sureness * row), ood_score=place / (10 * count))
        for place, (label, row) in enumerate(zip(labels, logits, strict=True))
    ]


def test_half_of_each_labels_patients_is_chosen_and_no_patient_is_on_both_sides() -> None:
    slices = [answered(file(label, f"{label}{n // 3}"), *towards(0)) for label in CLASSES for n in range(30)]
    chosen, again, other = split(slices, 1), split(slices, 1), split(slices, 2)
    patients = number_patients(slices)
    assert np.array_equal(chosen, again)
    assert not np.array_equal(chosen, other)
    assert not set(patients[chosen]) & set(patients[~chosen])
    assert [len(set(patients[chosen][patients[chosen] // 10 == label])) for label in range(4)] == [5] * 4


def test_odd_numbers_of_patients_do_not_all_favour_one_side() -> None:
    slices = [answered(file(label, f"{label}{n}"), *towards(0)) for label in CLASSES for n in range(3)]
    assert split(slices, 0).sum() == 6


def test_what_a_half_needs_is_said_with_what_it_has() -> None:
    slices = [answered(file("cancer", f"C{n}"), *towards(0)) for n in range(8)]
    slices += [answered(file(NORMAL, f"N{n}"), *towards(2)) for n in range(4)]
    slices += [unreadable(file(NORMAL, f"U{n}")) for n in range(4)]
    slices += [answered(file(NORMAL, f"R{n}"), *towards(2), chest_ct=0) for n in range(4)]
    half = np.arange(len(slices)) % 2 == 0
    assert what_is_missing(slices, half, 2) == ""
    assert what_is_missing(slices, half, 3) == (
        "each half needs at least 3 patients with cancer and 3 without; here are 4 and 4 with cancer, 2 and 2 without"
    )


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("sureness", [0.8, 2.5])
def test_the_temperature_undoes_what_the_model_is_too_sure_by(sureness: float, two: bool) -> None:
    found = refit(site(1500, sureness=sureness, two=two), BASE, WANTED, 10)
    assert found.temperature == pytest.approx(sureness, rel=0.15)
    assert found.scaling.scale == pytest.approx([1 / found.temperature] * 4)
    assert found.scaling.shift == (0,) * 4


def test_a_scaling_by_class_is_cooled_as_a_whole() -> None:
    vector = Scaling(method="normal_apart", scale=(2.0, 1.0, 0.5, 1.0), shift=(0.0, 0.4, 0.0, -0.4))
    found = refit(site(300, sureness=2), BASE.model_copy(update={"scaling": vector}), WANTED, 10)
    assert found.scaling.method == "normal_apart"
    assert found.scaling.scale == pytest.approx(np.array(vector.scale) / found.temperature)
    assert found.scaling.shift == pytest.approx(np.array(vector.shift) / found.temperature)


def test_slices_that_are_all_right_do_not_make_the_model_as_sure_as_can_be() -> None:
    slices = [
        answered(file(name, f"{name}{n}"), *towards(label)) for label, name in enumerate(CLASSES) for n in range(9)
    ]
    assert refit(slices, BASE, WANTED, 5).temperature == LEAST_TEMPERATURE


def test_the_ood_limit_is_the_sites_and_the_chest_ct_limit_is_the_bases() -> None:
    slices = site(400)
    slices = [
        each._replace(prediction=each.prediction.model_copy(update={"ood_score": 3 + n}))
        for n, each in enumerate(slices)
        if each.prediction
    ]
    rejected = [answered(file(NORMAL, "R"), *towards(2), chest_ct=0, ood_score=9999)]
    found = refit([*slices, *rejected, unreadable(file(NORMAL, "U"))], BASE, WANTED, 10)
    scores = np.arange(3, 403)
    assert found.thresholds.ood_limit == np.quantile(scores, 1 - WANTED.ood_false_rejection, method="higher")
    assert found.thresholds.chest_ct_limit == BASE.thresholds.chest_ct_limit
    again = answer_again(slices, BASE, found, "chestct:2")
    assert {each.prediction.model for each in again if each.prediction} == {"chestct:2"}
    unfamiliar = [each.outcome == UNFAMILIAR for each in again]
    assert sum(unfamiliar) == (scores > found.thresholds.ood_limit).sum()


def test_a_class_of_few_patients_gets_no_looser_thresholds() -> None:
    base = BASE.model_copy(
        update={"thresholds": BASE.thresholds.model_copy(update={"least_confidence": (0.9,) * 4, "refer_margin": 0.5})}
    )
    slices = [
        answered(file(name, f"{name}{n}"), *towards(label, 4)) for label, name in enumerate(CLASSES) for n in range(9)
    ]
    plenty, few = refit(slices, base, WANTED, 9).thresholds, refit(slices, base, WANTED, 10).thresholds
    two = [each._replace(file=each.file._replace(known=SIDES[each.file.known])) for each in slices]
    sides = refit(two, base, WANTED, 9).thresholds
    assert (plenty.least_confidence, plenty.refer_margin) == ((0.75, 0.75, 0.95, 0.75), 0.0)
    assert (few.least_confidence, few.refer_margin) == ((0.9, 0.9, 0.95, 0.9), 0.5)
    assert (sides.least_confidence, sides.refer_margin) == ((0.9, 0.9, 0.95, 0.9), 0.5)


def test_prediction_sets_stay_as_they_were_if_there_are_too_few_slices_for_their_coverage() -> None:
    few, many = (refit(site(count), BASE, WANTED, 1).thresholds for count in (60, 300))
    assert few.conformal_quantile == BASE.thresholds.conformal_quantile
    assert few.conformal_coverage == BASE.thresholds.conformal_coverage
    assert many.conformal_coverage == WANTED.conformal_coverage
    assert many.conformal_quantile < 1


def numbers(temperature: float) -> Numbers:
    return Numbers(
        Scaling(method="temperature", scale=(1 / temperature,) * 4, shift=(0.0,) * 4),
        BASE.thresholds.model_copy(update={"ood_limit": 0.8}),
        temperature,
    )


def pictures(labels: Sequence[int]) -> np.ndarray:
    return np.stack([tiny_picture(label) for label in labels])


def test_the_adapted_model_has_the_weights_of_its_base_and_says_where_it_comes_from(tmp_path: Path) -> None:
    tiny_model(tmp_path / "base")
    base = open_model(str(tmp_path / "base"))
    write_adapted(base, numbers(2.5), tmp_path / "adapted", ORIGIN, "Adapted.", pictures([0, 1]))
    card = ModelCard.read(tmp_path / "adapted" / CARD)
    check_sums(tmp_path / "adapted", GRAPH, CARD)
    before, after = (Engine(tmp_path / name / GRAPH).infer(pictures(range(4))) for name in ("base", "adapted"))
    assert after.probabilities == pytest.approx(softmax(np.log(before.probabilities) / 2.5, axis=1), abs=1e-5)
    assert np.array_equal(after.heatmaps, before.heatmaps)
    assert card.lineage.adapted == ORIGIN
    assert card.lineage.model_sha256 == sha256_of(tmp_path / "adapted" / GRAPH) != base.card.lineage.model_sha256
    assert card.thresholds.ood_limit == 0.8
    assert card.caveats == ("Adapted.", *base.card.caveats)
    assert card.metrics == base.card.metrics


def test_a_graph_that_can_not_be_rescaled_or_computes_something_else_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(tmp_path / "base")
    base = open_model(str(tmp_path / "base"))
    wrong = base._replace(card=base.card.model_copy(update={"logit_bias": (0.5, 0.0, 0.0, 0.0)}))
    with pytest.raises(StageError, match="probabilities are off by") as refused:
        write_adapted(wrong, numbers(2), tmp_path / "adapted", ORIGIN, "", pictures([0]))
    assert refused.value.exit_code == 3
    graph = onnx.load(tmp_path / "base" / GRAPH)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("scaled_logits", "older") for name in names]
    onnx.save(graph, tmp_path / "base" / GRAPH)
    with pytest.raises(StageError, match="can't be adapted: its graph has no nodes"):
        write_adapted(base, numbers(2), tmp_path / "adapted", ORIGIN, "", pictures([0]))
