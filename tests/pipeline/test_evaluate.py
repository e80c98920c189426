"""The stage evaluate: numbers fitted out of fold, and the same figures in DVC's metrics and in the card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestct.watched import EDGES, count
from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.evaluate import evaluate
from pipeline.images import input_facts
from pipeline.judging.calibration import Calibration, OutOfFold, Scored, fit
from pipeline.judging.ood import KINDS
from tests.graphs import plain_facts

IMAGES = 240


@pytest.fixture
def out_of_fold(workspace: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    """The workspace after stage trust: its predictions have some skill and are overconfident."""
    params = write_params({"evaluate.bootstrap": 100})
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 4, IMAGES)
    for path in (paths.OUT_OF_FOLD, paths.POOL):
        path.parent.mkdir(parents=True)
    np.savez(
        paths.OUT_OF_FOLD,
        logits=(3 * (rng.normal(0, 1, (IMAGES, 4)) + 2 * np.eye(4)[labels])).astype(np.float32),
        labels=labels,
        folds=np.arange(IMAGES) // 2 % 3,
        scans=np.arange(IMAGES) // 2,
    )
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 1), dtype=np.uint8)
    slices = [plain_facts(layout=rng.normal(0, 1, (8, 8)) + 9 * np.eye(8)) for _ in range(IMAGES)]
    np.savez(paths.POOL, pixels=pixels)
    np.savez(paths.FACTS, **input_facts.to_arrays(slices))
    np.savez(paths.FEATURES, features=rng.normal(0, 1, (IMAGES, 6)) + np.eye(4, 6)[labels])
    with np.load(paths.OUT_OF_FOLD) as file:
        changed = np.repeat(file["logits"][np.newaxis], 2, axis=0)
    changed[0, :24] *= -1
    np.savez(
        paths.TRUST,
        changes=np.array(["rotate", "brighten"]),
        changed_logits=changed,
        in_body=np.full(IMAGES, 0.9),
        body_area=np.full(IMAGES, 0.5),
        random_heads=np.full(IMAGES, 0.2),
        occlusion_agrees=np.arange(IMAGES) % 10 > 0,
        other_groups=np.array(["noise", "noise", "photographs", "screenshots"]),
        **{f"ood_{kind}": rng.gamma(4, 1, IMAGES).astype(np.float32) for kind in KINDS},
        **{f"other_ood_{kind}": np.tile([99.0, 0.0, 0.0, 99.0], (3, 1)) for kind in KINDS},
        chest_ct=rng.uniform(0.9, 1, IMAGES).astype(np.float32),
        other_chest_ct=np.tile([0.1, 0.9, 0.9, 0.9], (3, 1)),
        **input_facts.to_arrays([slices[0], slices[1], slices[2]._replace(colour=50.0), slices[3]]),
    )
    np.savez(
        paths.STYLES,
        styles=np.array(["lung_window", "padded"]),
        logits=changed,
        chest_ct=np.ones((2, IMAGES), np.float32),
        **{f"ood_{kind}": rng.gamma(4, 1, (2, IMAGES)).astype(np.float32) for kind in KINDS},
        **input_facts.to_arrays(slices * 2),
    )
    return params


def test_the_released_numbers_are_fitted_on_all_out_of_fold_predictions(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    with np.load(paths.OUT_OF_FOLD) as file:
        logits, labels = file["logits"].astype(np.float64), file["labels"]
    with np.load(paths.FACTS) as facts, np.load(paths.TRUST) as trust:
        scored = Scored(logits, trust["ood_mahalanobis"], trust["chest_ct"], labels, input_facts.from_arrays(facts))
    found = Calibration.read(paths.CALIBRATION)
    assert found == fit(scored, out_of_fold.evaluate, found.scaling.method)
    assert max(found.scaling.scale) < 1 / 1.5


def test_the_dvc_metrics_and_the_card_have_the_same_figures(
    out_of_fold: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(out_of_fold)
    summary = json.loads(paths.OUT_OF_FOLD_METRICS.read_text(encoding="utf-8"))
    metrics = OutOfFold.read(paths.OUT_OF_FOLD_CARD).metrics

    assert metrics.images == IMAGES
    assert metrics.split == "out-of-fold on train + valid, 3 folds by scan"
    for name in ("loss", "accuracy", "macro_f1", "roc_auc", "calibration_error"):
        figure = getattr(metrics, name)
        assert summary[name] == pytest.approx(figure.value, abs=5e-5)
        assert (summary[f"{name}_low"], summary[f"{name}_high"]) == pytest.approx((figure.low, figure.high), abs=5e-5)
    short = json.loads(paths.KEY_FIGURES.read_text(encoding="utf-8"))
    assert short.pop("accepted") == pytest.approx(1 - summary["rejected"] - summary["referred"], abs=2e-4)
    kept, otherwise = (
        [summary[f"style_{style}_{name}"] for style in ("lung_window", "padded")]
        for name in ("kept", "accepted_otherwise")
    )
    assert (short.pop("style_kept"), short.pop("style_wrong")) == (min(kept), max(otherwise))
    assert short == {name: summary[name] for name in ("accuracy", "macro_f1", "cancer_auc", "calibration_error")}
    assert f"macro F1 {metrics.macro_f1.value:.3f}" in capsys.readouterr().out


def test_the_dvc_metrics_and_the_card_have_each_fold_and_their_spread(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    summary = json.loads(paths.OUT_OF_FOLD_METRICS.read_text(encoding="utf-8"))
    folds = OutOfFold.read(paths.OUT_OF_FOLD_CARD).folds
    assert sum(fold.images for fold in folds) == IMAGES
    for name in ("accuracy", "macro_f1"):
        values = [getattr(fold, name) for fold in folds]
        assert [summary[f"{name}_fold_{number}"] for number in (1, 2, 3)] == pytest.approx(values, abs=5e-5)
        assert summary[f"{name}_sd_of_folds"] == pytest.approx(np.std(values, ddof=1), abs=5e-5)
    weighted = sum(fold.images * fold.accuracy for fold in folds) / IMAGES
    assert weighted == pytest.approx(summary["accuracy"], abs=5e-5)


def test_small_changes_and_heat_maps_are_figures_with_intervals(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    summary = json.loads(paths.OUT_OF_FOLD_METRICS.read_text(encoding="utf-8"))
    assert summary["flips_brighten"] == 0
    assert summary["flips"] == pytest.approx(summary["flips_rotate"] / 2, abs=1e-4)
    assert 0.05 < summary["flips_rotate"] <= 0.1
    assert summary["occlusion_agrees"] == 0.9
    assert summary["flips_low"] < summary["flips"] < summary["flips_high"]
    checks = OutOfFold.read(paths.OUT_OF_FOLD_CARD).checks
    assert {"flips", "flips_rotate", "heatmap_on_body", "occlusion_agrees"} <= checks.keys()


def test_other_pictures_are_rejected_by_the_probe_or_a_rule_and_may_be_unfamiliar(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    others = json.loads(paths.OUT_OF_FOLD_CARD.read_bytes())["others"]
    alone = {"chest_ct": 0.0, "input": 0.0}
    by_probe, by_rule = {**alone, "chest_ct": 0.5}, {**alone, "input": 1.0}
    assert others["noise"] == {"images": 2, "rejected_by": by_probe, "rejected": 0.5, "unfamiliar": 0}
    assert others["photographs"] == {"images": 1, "rejected_by": by_rule, "rejected": 1.0, "unfamiliar": 0}
    assert others["screenshots"] == {"images": 1, "rejected_by": alone, "rejected": 0.0, "unfamiliar": 1}


def test_the_card_has_baselines_and_histograms_of_the_scores(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    card = OutOfFold.read(paths.OUT_OF_FOLD_CARD)
    limit = Calibration.read(paths.CALIBRATION).thresholds.ood_limit
    with np.load(paths.TRUST) as trust:
        rejected = (trust["ood_mahalanobis"] > limit).sum()
    beyond = card.ood_scores.edges.index(limit)
    assert sum(card.ood_scores.counts["chest_ct"]) == IMAGES
    assert sum(card.ood_scores.counts["chest_ct"][beyond:]) == rejected
    assert (card.ood_scores.counts["noise"][0], card.ood_scores.counts["noise"][-1]) == (3, 3)
    baselines = card.baselines
    assert set(baselines) == {"majority_class", "style_alone", "nearest_picture", "frozen_features"}
    assert baselines["frozen_features"]["accuracy"].value > baselines["majority_class"]["accuracy"].value


def test_the_card_has_the_reference_of_the_watched_facts(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    reference = OutOfFold.read(paths.OUT_OF_FOLD_CARD).reference
    thresholds = Calibration.read(paths.CALIBRATION).thresholds
    with np.load(paths.TRUST) as trust:
        familiarity = trust["ood_mahalanobis"] / thresholds.ood_limit
    assert (reference.images, reference.same_scan) == (IMAGES, pytest.approx(1 / (IMAGES - 1)))
    assert {name: fact.edges for name, fact in reference.facts.items()} == EDGES
    assert reference.facts["familiarity"].shares == pytest.approx(count("familiarity", familiarity) / IMAGES, abs=1e-6)
    assert reference.facts["input_side"].shares == (0, 0, 0, 1, 0, 0, 0, 0)  # all are 400 pixels wide


def test_a_rule_on_the_input_that_rejects_the_training_images_ends_the_stage(
    out_of_fold: Params, write_params: Callable[[dict[str, Any]], Params]
) -> None:
    with pytest.raises(StageError, match=r"the rule too_small would reject 100\.0%") as caught:
        evaluate(write_params({"evaluate.input_rules.min_side": 301}))
    assert caught.value.exit_code == 3
    assert not paths.CALIBRATION.exists()


def test_prediction_sets_that_only_repeat_the_label_end_the_stage(
    out_of_fold: Params, write_params: Callable[[dict[str, Any]], Params], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(out_of_fold)
    metrics = OutOfFold.read(paths.OUT_OF_FOLD_CARD).metrics
    assert metrics.set_coverage.value >= 0.98
    assert 1.05 < metrics.set_size.value < 3
    accuracy = metrics.accuracy.value
    paths.CALIBRATION.unlink()
    write_params({"evaluate.bootstrap": 100, "evaluate.conformal_coverage": 0.5})
    with pytest.raises(SystemExit) as caught:
        runner.run(evaluate)
    assert caught.value.code == 3
    assert capsys.readouterr().err == (
        "evaluate: evaluate.conformal_coverage 0.5: every prediction set is the label alone, so the sets say nothing; "
        f"raise it above the accuracy, {accuracy:.3f}\n"
    )
    assert not paths.CALIBRATION.exists()
