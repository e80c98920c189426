"""Counts the pictures that the probe and the rules on the input reject, and those that are unfamiliar."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import OtherPictures, ScoreCounts
from chestct.image import Facts
from chestct.prediction import RULES, Evidence, Rule
from pipeline.core.errors import StageError
from pipeline.images import input_facts
from pipeline.images.classes import class_count
from pipeline.judging import ood
from pipeline.judging.calibration import Calibration

_BINS_TO_LIMIT: Final = 20


def check_input_rules(facts: Sequence[Facts], calibration: Calibration, allowed: float) -> None:
    """Raise StageError (exit code 3) if a rule on the input rejects more than the share `allowed` of chest CT."""
    for rule in RULES:
        share = np.mean([_rejects_input(rule, each, calibration) for each in facts])
        if share > allowed:
            raise StageError(
                f"evaluate.input_rules: the rule {rule.name} would reject {share:.1%} of train and valid, allowed are "
                f"{allowed:.1%}; widen its limit",
                3,
            )


def count_rejected(
    trust: Mapping[str, NDArray[Any]], serving: ood.Kind, calibration: Calibration
) -> dict[str, OtherPictures]:
    """The answers to each group of other pictures, as means over the folds' networks.

    `trust` holds the arrays of stage trust, `serving` is the OOD score that the service uses.
    """
    limits = calibration.thresholds
    unlike = trust["other_chest_ct"] < limits.chest_ct_limit
    unfamiliar = trust[f"other_ood_{serving}"] > limits.ood_limit
    by_rule = np.array(
        [any(_rejects_input(rule, facts, calibration) for rule in RULES) for facts in input_facts.from_arrays(trust)]
    )
    table = {}
    for group in dict.fromkeys(trust["other_groups"].tolist()):
        chosen = trust["other_groups"] == group
        rejected = (unlike | by_rule)[:, chosen]
        table[group] = OtherPictures(
            images=int(chosen.sum()),
            rejected_by={"chest_ct": float(unlike[:, chosen].mean()), "input": float(by_rule[chosen].mean())},
            rejected=float(rejected.mean()),
            unfamiliar=float((unfamiliar[:, chosen] & ~rejected).mean()),
        )
    return table


def count_scores(trust: Mapping[str, NDArray[Any]], kind: ood.Kind, limit: float) -> ScoreCounts:
    """A histogram of the OOD scores of chest CT and of each group of other pictures.

    The bins reach from the lowest score of chest CT to three times as far as `limit`. The first and the last bin also
    count all scores beyond them.
    """
    groups = {"chest_ct": trust[f"ood_{kind}"]}
    for group in dict.fromkeys(trust["other_groups"].tolist()):
        groups[group] = trust[f"other_ood_{kind}"][:, trust["other_groups"] == group].ravel()
    step = (limit - groups["chest_ct"].min()) / _BINS_TO_LIMIT
    edges = limit + step * np.arange(-_BINS_TO_LIMIT, 2 * _BINS_TO_LIMIT + 1)
    counts = {}
    for name, scores in groups.items():
        bins = (np.searchsorted(edges, scores) - 1).clip(0, len(edges) - 2)
        counts[name] = tuple(np.bincount(bins, minlength=len(edges) - 1).tolist())
    return ScoreCounts(kind=kind, edges=tuple(edges.tolist()), counts=counts)


def _rejects_input(rule: Rule, facts: Facts, calibration: Calibration) -> bool:
    if rule.on != "input":
        return False
    unused = np.full(class_count(), 1 / class_count())  # rules on the input ignore the probabilities
    return rule.fires(Evidence(unused, 0.0, 1.0, 0, calibration.thresholds, facts, calibration.input_limits))
