"""`python -m pipeline.compare`: two runs of MLflow, image by image."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import compare
from pipeline.core import paths, tracking
from pipeline.core.params import Params
from tests.pipeline.conftest import start_run

COUNT = 40
LABELS = np.arange(COUNT) % 4


@pytest.fixture
def params(tracked: Path, write_params: Any) -> Params:
    return write_params({"evaluate.bootstrap": 100})


def trained(params: Params, wrong: int, *, digest: str = "ab" * 32, **changes: np.ndarray) -> str:
    """Record a training that errs on the first `wrong` images. Returns its id."""
    run_id = start_run(params, data_digest=digest)
    predicted = LABELS.copy()
    predicted[:wrong] = 3 - predicted[:wrong]
    arrays: dict[str, Any] = {
        "sha256": np.array([f"{index:064d}" for index in range(COUNT)]),
        "labels": LABELS,
        "logits": np.eye(4)[predicted],
        "folds": np.arange(COUNT) // 8,
        "scans": np.arange(COUNT) // 2,
    }
    paths.OUT_OF_FOLD.parent.mkdir(exist_ok=True)
    np.savez(paths.OUT_OF_FOLD, **{**arrays, **changes})
    tracking.log_artifact(run_id, paths.OUT_OF_FOLD)
    return run_id


def refused(monkeypatch: pytest.MonkeyPatch, *ids: str) -> object:
    """The exit code of a comparison that ends in an error."""
    monkeypatch.setattr(sys, "argv", ["compare", *ids])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    return ended.value.code


def test_two_runs_are_compared_image_by_image(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = trained(params, 4), trained(params.changed({"train.epochs": 7}), 6)
    monkeypatch.setattr(sys, "argv", ["compare", first, second[:16]])
    compare.main()
    head, accuracy, macro_f1, cancer_auc, counts, same, *changes = capsys.readouterr().out.splitlines()
    assert head.split() == ["out", "of", "fold", "A", first[:8], "B", second[:8], "B", "-", "A,", "points"]
    interval = r"\(0\.\d{3} to [01]\.\d{3}\)"
    assert re.fullmatch(rf"accuracy +0\.900 {interval} +0\.850 {interval} +-5\.0 \(-1\d\.\d to \+0\.0\)", accuracy)
    assert re.fullmatch(rf"macro F1 +0\.900 {interval} +0\.8\d\d {interval} +-5\.\d \(-\d+\.\d to \+0\.\d\)", macro_f1)
    assert re.fullmatch(rf"any cancer, ROC AUC +0\.\d{{3}} {interval} +0\.\d{{3}} {interval} .*", cancer_auc)
    assert counts == "of 40 images in 20 scans, A alone gets 2 right, B alone 0, both 34, neither 4"
    assert same == "same data (abababababab), images, labels, folds and scans"
    assert changes == [f"train.epochs: {params.train.epochs} -> 7"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "cd" * 32}, "data digest"),
        ({"folds": np.arange(COUNT) % 5}, "folds"),
        ({"scans": np.arange(COUNT)}, "scans"),
        ({"sha256": np.arange(COUNT).astype(str)}, "images"),
        ({"digest": "cd" * 32, "folds": np.arange(COUNT) % 5, "scans": np.arange(COUNT)}, "data digest, folds, scans"),
    ],
)
def test_runs_that_differ_in_more_than_the_training_are_refused_in_one_line(
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    first, second = trained(params, 4), trained(params, 4, **change)
    assert refused(monkeypatch, first, second) == 2
    assert capsys.readouterr() == (
        "",
        f"compare: runs {first} and {second} can't be compared image by image: they differ in {words}\n",
    )


def test_a_run_without_answers_is_refused_in_one_line(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = start_run(params)
    assert refused(monkeypatch, trained(params, 4), old) == 2
    assert capsys.readouterr().err == (
        f"compare: run {old} has no out_of_fold.npz, so its answers are not known; train it again\n"
    )
    assert refused(monkeypatch, old, "zz") == 2
    assert capsys.readouterr().err == "compare: zz: no such run of a training\n"
