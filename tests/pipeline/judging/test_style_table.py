"""Shares of the slices that keep their answers in other styles."""

from typing import Any

import numpy as np
import pytest

from chestct.card import InputLimits, Scaling, Thresholds
from pipeline.images import input_facts
from pipeline.judging import style_table
from pipeline.judging.calibration import Calibration
from tests.graphs import plain_facts
from tests.pipeline.conftest import small_params


def test_each_slice_is_counted_by_its_label_and_decision_in_the_style() -> None:
    same, other, normal, close = [9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 9.0, 0], [0.1, 0, 0, 0]
    styles: dict[str, Any] = {
        "styles": np.array(["a", "b"]),
        "logits": np.array([[same, same, same, same], [same, other, normal, close]]),
        "ood_mahalanobis": np.array([[0.0, 0, 0, 2], [0, 0, 2, 0]]),
        "chest_ct": np.ones((2, 4)),
        **input_facts.to_arrays([plain_facts()] * 8),
    }
    limits = InputLimits(**small_params().evaluate.input_rules.model_dump(), average_layout=(0.0,) * 64)
    scaling = Scaling(method="temperature", scale=(1.0,) * 4, shift=(0.0,) * 4)
    thresholds = Thresholds(
        ood_limit=1,
        chest_ct_limit=0,
        refer_margin=0.1,
        any_cancer=1,
        least_confidence=(0.0,) * 4,
        conformal_quantile=0.5,
        conformal_coverage=0.9,
    )
    numbers = Calibration(scaling=scaling, thresholds=thresholds, input_limits=limits)
    table = style_table.measure(styles, np.zeros(4, np.int64), "mahalanobis", numbers, np.arange(4))
    values = {style: {name: each.value for name, each in row.items()} for style, row in table.items()}
    assert values == {
        "a": {
            "kept": 1,
            "kept_normal_or_cancer": 1,
            "kept_or_unfamiliar": 1,
            "accepted_otherwise": 0,
            "unfamiliar": 0.25,
            "rejected": 0,
        },
        "b": {
            "kept": 0.5,
            "kept_normal_or_cancer": 0.75,
            "kept_or_unfamiliar": 0.75,
            "accepted_otherwise": 0.25,
            "unfamiliar": 0.25,
            "rejected": 0,
        },
    }
    assert table["a"]["kept"].low == pytest.approx(0.025 ** (1 / 4), abs=0.01)
