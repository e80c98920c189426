"""Stage evaluate: what out-of-fold predictions say about the model, and the numbers that turn its scores to answers.

The numbers in CALIBRATION are fitted on all out-of-fold predictions. The reported figures come from answers that are
cross-fitted (see pipeline.judging.calibration), with intervals from resampling whole visual clusters.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from chestct.card import Estimate, Fold, Others, ScoreCounts
from chestct.image import Facts
from chestct.prediction import RULES, Evidence, Rule
from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.images.input_facts import read_facts
from pipeline.judging import baselines, ood
from pipeline.judging.calibration import (
    METHODS,
    Answers,
    Calibration,
    OutOfFold,
    Scored,
    costs_of_errors,
    cross_fit,
    cross_fitted_loss,
    fit,
)
from pipeline.judging.metrics import Evaluation, write_key_figures
from pipeline.judging.plots import draw_ood

_NOTHING: Final = np.full(len(CLASSES), 1 / len(CLASSES))
"""Probabilities for rules that don't look at them."""
_BINS_TO_LIMIT: Final = 20


def evaluate(params: Params) -> None:
    """Write CALIBRATION, OUT_OF_FOLD_METRICS, KEY_FIGURES, OTHERS, OUT_OF_FOLD_CARD and OUT_OF_FOLD_PLOTS.

    Raises StageError (exit code 3) where a rule on the input rejects more chest CT than `ood_false_rejection` allows.
    """
    wanted = params.evaluate
    with np.load(paths.OUT_OF_FOLD) as file:
        logits, labels, folds, clusters = (file[name] for name in ("logits", "labels", "folds", "clusters"))
    with np.load(paths.POOL) as file, np.load(paths.FACTS) as measured, np.load(paths.FEATURES) as cached:
        pixels, facts, features = file["pixels"], read_facts(measured), cached["features"]
    with np.load(paths.TRUST) as file:
        trust = dict(file)
    scored = Scored(logits.astype(np.float64), trust[f"ood_{wanted.ood_score}"], labels, facts)

    losses = {method: cross_fitted_loss(scored, folds, method) for method in METHODS}
    method = min(METHODS, key=lambda each: losses[each])
    calibration = fit(scored, wanted, method)
    _check_input_rules(facts, calibration, wanted.ood_false_rejection)
    calibration.write(paths.CALIBRATION)

    answers = cross_fit(scored, folds, wanted, method)
    checks = _checks(trust, scored, calibration)
    evaluation = Evaluation(
        answers, labels, groups=clusters, checks=checks, resamples=wanted.bootstrap, seed=params.seed
    )
    others = _others(trust, wanted.ood_score, calibration, wanted.ood_false_rejection)
    split = f"out-of-fold on train + valid, {len(np.unique(folds))} folds by visual cluster"
    paths.OUT_OF_FOLD_METRICS.parent.mkdir(parents=True, exist_ok=True)
    by_fold = evaluation.within(folds)
    summary = {
        **evaluation.summary(),
        **{f"loss_with_{each}_scaling": round(loss, 4) for each, loss in losses.items()},
        **_costs(answers, labels, params),
        **_spread(by_fold),
    }
    paths.OUT_OF_FOLD_METRICS.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_key_figures("out_of_fold", evaluation.key_figures())
    paths.OTHERS.write_bytes(TypeAdapter(dict[str, Others]).dump_json(others, indent=1) + b"\n")
    found = baselines.predict(pixels, facts, features, labels, folds)
    card = OutOfFold(
        metrics=evaluation.metrics(split),
        folds=by_fold,
        baselines={name: _baseline(each, labels, clusters, params) for name, each in found.items()},
        checks={name: evaluation.figures[name] for name in checks},
        others=others,
        ood_scores=_count_scores(trust, wanted.ood_score, calibration.thresholds.ood_limit),
    )
    paths.OUT_OF_FOLD_CARD.write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    evaluation.draw(paths.OUT_OF_FOLD_PLOTS, split)
    draw_ood(card.ood_scores, calibration.thresholds.ood_limit, paths.OUT_OF_FOLD_PLOTS)

    figures = evaluation.figures
    print(
        f"out-of-fold: macro F1 {figures['macro_f1'].value:.3f} ({figures['macro_f1'].low:.3f} to "
        f"{figures['macro_f1'].high:.3f}), accuracy {figures['accuracy'].value:.3f}, "
        f"calibration error {figures['calibration_error'].value:.3f} by {method} scaling, "
        f"referred {figures['referred'].value:.1%}, flipped by small changes {figures['flips'].value:.1%}"
    )


def _check_input_rules(facts: Sequence[Facts], calibration: Calibration, allowed: float) -> None:
    """No rule on the input may reject more than `allowed` of train and valid: its number is wrong then."""
    for rule in RULES:
        share = np.mean([_fires_on(rule, each, calibration) for each in facts])
        if share > allowed:
            raise StageError(
                f"evaluate.input_rules: the rule {rule.name} would reject {share:.1%} of train and valid, allowed are "
                f"{allowed:.1%}; widen its limit",
                3,
            )


def _checks(trust: Mapping[str, Any], scored: Scored, calibration: Calibration) -> dict[str, NDArray[np.floating]]:
    """Numbers [N] whose means are figures: how the network did in the tests of stage trust."""
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


def _others(trust: Mapping[str, Any], serving: ood.Kind, calibration: Calibration, allowed: float) -> dict[str, Others]:
    """Shares over pictures and folds, each score at the limit that rejects `allowed` of the out-of-fold chest CT."""
    over = {
        kind: trust[f"other_ood_{kind}"] > np.quantile(trust[f"ood_{kind}"], 1 - allowed, method="higher")
        for kind in ood.KINDS
    }
    by_rule = np.array([any(_fires_on(rule, facts, calibration) for rule in RULES) for facts in read_facts(trust)])
    table = {}
    for group in dict.fromkeys(trust["other_groups"].tolist()):
        chosen = trust["other_groups"] == group
        table[group] = Others(
            images=int(chosen.sum()),
            rejected_by={kind: float(over[kind][:, chosen].mean()) for kind in ood.KINDS},
            rejected=float((over[serving] | by_rule)[:, chosen].mean()),
        )
    return table


def _fires_on(rule: Rule, facts: Facts, calibration: Calibration) -> bool:
    """Whether it is a rule on the input and rejects this picture."""
    evidence = Evidence(_NOTHING, 0.0, 0, calibration.thresholds, facts, calibration.input_limits)
    return rule.on == "input" and rule.fires(evidence)


def _costs(answers: Answers, labels: NDArray[np.int64], params: Params) -> dict[str, float]:
    """Mean cost of an answer: as decided, if every label stood, and if all were referred."""
    costs = params.evaluate.costs
    errors = costs_of_errors(costs)[labels, answers.probabilities.argmax(axis=1)]
    decided = np.where(answers.accepted, errors, costs.refer)
    return {
        "cost": round(float(decided.mean()), 4),
        "cost_if_all_stood": round(float(errors.mean()), 4),
        "cost_if_all_referred": round(costs.refer, 4),
    }


def _spread(folds: Sequence[Fold]) -> dict[str, float]:
    """Accuracy and macro F1 of each fold, counted from 1, and their standard deviation over the folds."""
    table = {name: [getattr(fold, name) for fold in folds] for name in ("accuracy", "macro_f1")}
    each = {
        f"{name}_fold_{fold}": round(value, 4) for name, values in table.items() for fold, value in enumerate(values, 1)
    }
    return each | {f"{name}_sd_of_folds": round(stdev(values), 4) for name, values in table.items()}


def _baseline(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], clusters: NDArray[np.int64], params: Params
) -> dict[str, Estimate]:
    certain = np.eye(len(CLASSES))[predicted]
    every = np.ones(len(labels), bool)
    answers = Answers(certain, every, ~every, certain > 0, ~every)
    figures = Evaluation(
        answers, labels, groups=clusters, resamples=params.evaluate.bootstrap, seed=params.seed
    ).figures
    return {name: figures[name] for name in ("accuracy", "macro_f1")}


def _count_scores(trust: Mapping[str, Any], kind: ood.Kind, limit: float) -> ScoreCounts:
    """In bins from chest CT's least score to three times as far as the limit; the end bins hold all beyond."""
    groups = {"chest_ct": trust[f"ood_{kind}"]}
    for group in dict.fromkeys(trust["other_groups"].tolist()):
        groups[group] = trust[f"other_ood_{kind}"][:, trust["other_groups"] == group].ravel()
    step = (limit - groups["chest_ct"].min()) / _BINS_TO_LIMIT
    edges = limit + step * np.arange(-_BINS_TO_LIMIT, 2 * _BINS_TO_LIMIT + 1)
    return ScoreCounts(
        kind=kind,
        edges=tuple(edges.tolist()),
        counts={
            name: tuple(np.bincount(bins.clip(0, len(edges) - 2), minlength=len(edges) - 1).tolist())
            for name, bins in ((name, np.searchsorted(edges, scores) - 1) for name, scores in groups.items())
        },
    )


def main() -> None:
    runner.run(evaluate)


if __name__ == "__main__":
    main()
