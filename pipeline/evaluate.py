"""Stage evaluate: measures the out-of-fold predictions and fits the numbers that turn scores into answers.

The numbers in CALIBRATION are fitted on all out-of-fold predictions. The reported figures are cross-fitted (see
pipeline.judging.calibration), and their intervals come from resampling whole scans.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestct.card import Estimate, Fold
from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.images import input_facts
from pipeline.judging import baselines, reference, rejection, style_table
from pipeline.judging.calibration import (
    METHODS,
    Answers,
    Calibration,
    OutOfFold,
    Scored,
    cross_fit,
    cross_fitted_loss,
    fit,
)
from pipeline.judging.metrics import Evaluation
from pipeline.judging.plots import draw_ood, in_words
from pipeline.judging.thresholds import mean_costs
from pipeline.judging.worst_style import worst_style


def evaluate(params: Params) -> None:
    """Write CALIBRATION, OUT_OF_FOLD_METRICS, KEY_FIGURES, OUT_OF_FOLD_CARD, CONFUSION and OUT_OF_FOLD_PLOTS.

    Raises StageError (exit code 3), before anything is written, if a rule on the input rejects more chest CT than
    `ood_false_rejection` allows, or if every prediction set is the label alone.
    """
    wanted = params.evaluate
    with np.load(paths.OUT_OF_FOLD) as file:
        logits, labels, folds, scans = (file[name] for name in ("logits", "labels", "folds", "scans"))
    with np.load(paths.POOL) as file, np.load(paths.FACTS) as measured, np.load(paths.FEATURES) as cached:
        pixels, facts, features = file["pixels"], input_facts.from_arrays(measured), cached["features"]
    with np.load(paths.TRUST) as file:
        trust = dict(file)
    scored = Scored(logits.astype(np.float64), trust[f"ood_{wanted.ood_score}"], trust["chest_ct"], labels, facts)

    losses = {method: cross_fitted_loss(scored, folds, method) for method in METHODS}
    method = min(METHODS, key=lambda each: losses[each])
    calibration = fit(scored, wanted, method)
    rejection.check_input_rules(facts, calibration, wanted.ood_false_rejection)
    answers = cross_fit(scored, folds, wanted, method)
    _require_telling_sets(answers, labels, wanted.conformal_coverage)
    calibration.write(paths.CALIBRATION)

    resampling = {"resamples": wanted.bootstrap, "seed": params.seed}
    checks = _checks(trust, scored, calibration)
    evaluation = Evaluation(answers, labels, groups=scans, checks=checks, **resampling)
    split = f"out-of-fold on train + valid, {len(np.unique(folds))} folds by scan"
    by_fold = evaluation.within(folds)
    with np.load(paths.STYLES) as file:
        before = calibration.scaling.apply(scored.logits).argmax(axis=1)
        styles = style_table.measure(file, before, wanted.ood_score, calibration, scans)
    summary = {
        **evaluation.summary(),
        **{f"loss_with_{each}_scaling": round(loss, 4) for each, loss in losses.items()},
        **mean_costs(answers.probabilities, answers.accepted, labels, wanted.costs),
        **_spread(by_fold),
        **{
            f"style_{style}_{name}": round(each.value, 4) for style, row in styles.items() for name, each in row.items()
        },
    }
    predicted = baselines.predict(pixels, facts, features, labels, folds)
    card = OutOfFold(
        metrics=evaluation.metrics(split),
        folds=by_fold,
        baselines={name: baselines.measure(each, labels, scans, **resampling) for name, each in predicted.items()},
        checks={name: evaluation.figures[name] for name in checks},
        styles=styles,
        others=rejection.count_rejected(trust, wanted.ood_score, calibration),
        ood_scores=rejection.count_scores(trust, wanted.ood_score, calibration.thresholds.ood_limit),
        reference=reference.measure_reference(scored, calibration, scans),
    )
    paths.OUT_OF_FOLD_METRICS.parent.mkdir(parents=True, exist_ok=True)
    for path, numbers in ((paths.OUT_OF_FOLD_METRICS, summary), (paths.KEY_FIGURES, _key_figures(evaluation, styles))):
        path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    card.write(paths.OUT_OF_FOLD_CARD)
    evaluation.draw(paths.OUT_OF_FOLD_PLOTS, split)
    evaluation.write_pairs(paths.CONFUSION)
    draw_ood(card.ood_scores, calibration.thresholds.ood_limit, paths.OUT_OF_FOLD_PLOTS)
    print(f"calibrated by {method} scaling")
    _print_figures(evaluation.figures, styles)


def _require_telling_sets(answers: Answers, labels: NDArray[np.int64], coverage: float) -> None:
    """Raise StageError (exit code 3) if the mean size of the prediction sets is 1.000. They then repeat the label.

    `labels` [N] are the true classes of `answers`. The sets were fitted to `coverage`.
    """
    size = answers.sets.sum(axis=1).mean()
    if round(size, 3) <= 1:
        accuracy = (answers.probabilities.argmax(axis=1) == labels).mean()
        raise StageError(
            f"evaluate.conformal_coverage {coverage:g}: every prediction set is the label alone, so the sets say "
            f"nothing; raise it above the accuracy, {accuracy:.3f}",
            3,
        )


def _key_figures(evaluation: Evaluation, styles: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """The key figures, with those of the worst style: labels kept, and slices accepted with another label."""
    worst = worst_style(styles)
    in_style = {"style_kept": worst["style_kept"], "style_wrong": worst["style_accepted_otherwise"]}
    return {**evaluation.key_figures(), **{name: round(value, 4) for name, value in in_style.items()}}


def _print_figures(figures: Mapping[str, Estimate], styles: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Print the main figures, and what becomes of the labels in other styles."""
    print(
        f"out-of-fold: any cancer against normal, ROC AUC {in_words(figures['cancer_auc'])}, accuracy "
        f"{in_words(figures['accuracy'])}, macro F1 {in_words(figures['macro_f1'])}, calibration error "
        f"{figures['calibration_error'].value:.3f}, referred {figures['referred'].value:.1%}, flipped by small changes "
        f"{figures['flips'].value:.1%}"
    )
    for style, row in styles.items():
        kept, otherwise = row["kept"], row["accepted_otherwise"]
        print(
            f"shown as {style}: label kept {kept.value:.1%} ({kept.low:.1%} to {kept.high:.1%}), accepted with another "
            f"label {otherwise.value:.1%}, unfamiliar {row['unfamiliar'].value:.1%}"
        )


def _checks(trust: Mapping[str, Any], scored: Scored, calibration: Calibration) -> dict[str, NDArray[np.floating]]:
    """Results of stage trust as numbers [N] for each image. The mean of each is a figure."""
    before = calibration.scaling.apply(scored.logits).argmax(axis=1)
    flips = calibration.scaling.apply(trust["changed_logits"]).argmax(axis=2) != before
    return {
        "flips": flips.mean(axis=0),
        **{f"flips_{name}": each.astype(float) for name, each in zip(trust["changes"], flips, strict=True)},
        "heatmap_on_body": trust["in_body"],
        "body_area": trust["body_area"],
        "heatmap_like_random_head": trust["random_heads"],
        "occlusion_agrees": trust["occlusion_agrees"].astype(float),
    }


def _spread(folds: Sequence[Fold]) -> dict[str, float]:
    """Accuracy and macro F1 of each fold, counted from 1, and their standard deviation over the folds."""
    numbers: dict[str, float] = {}
    for name in ("accuracy", "macro_f1"):
        values = [getattr(fold, name) for fold in folds]
        numbers |= {f"{name}_fold_{fold}": round(value, 4) for fold, value in enumerate(values, 1)}
        numbers[f"{name}_sd_of_folds"] = round(stdev(values), 4)
    return numbers


def main() -> None:
    runner.run(evaluate)


if __name__ == "__main__":
    main()
