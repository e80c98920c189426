import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from chestct.card import Metrics
from pipeline import paths, tracking
from pipeline.calibration import Calibration, fit
from pipeline.evaluate import evaluate
from pipeline.params import Params

IMAGES = 240


@pytest.fixture
def out_of_fold(tracked: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    """The workspace after stage train: predictions of some skill, too sure of themselves, and a run."""
    params = write_params({"evaluate.bootstrap": 100})
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 4, IMAGES)
    paths.OUT_OF_FOLD.parent.mkdir(parents=True)
    np.savez(
        paths.OUT_OF_FOLD,
        logits=(3 * (rng.normal(0, 1, (IMAGES, 4)) + 2 * np.eye(4)[labels])).astype(np.float32),
        ood_scores=rng.gamma(4, 1, IMAGES).astype(np.float32),
        labels=labels,
        folds=np.arange(IMAGES) // 2 % 3,
        clusters=np.arange(IMAGES) // 2,
    )
    (tracked / "audit.json").write_text("{}", encoding="utf-8")
    run_id = tracking.start_run(
        params,
        data_source="synthetic",
        data_digest="ab" * 32,
        audit=tracked / "audit.json",
        image_count=IMAGES,
        git_commit="c0ffee",
    )
    paths.RUN.write_text(json.dumps({"run_id": run_id}), encoding="utf-8")
    return params


def test_what_ships_is_fitted_on_all_out_of_fold_predictions(out_of_fold: Params) -> None:
    evaluate(out_of_fold)
    with np.load(paths.OUT_OF_FOLD) as file:
        expected = fit(file["logits"].astype(np.float64), file["ood_scores"], file["labels"], out_of_fold.evaluate)
    assert Calibration.read(paths.CALIBRATION) == expected
    assert expected.temperature > 1.5


def test_the_same_figures_stand_in_the_dvc_metrics_in_the_cards_form_and_in_the_run(
    out_of_fold: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(out_of_fold)
    summary = json.loads(paths.OUT_OF_FOLD_METRICS.read_text(encoding="utf-8"))
    metrics = Metrics.model_validate_json(paths.OUT_OF_FOLD_CARD.read_bytes())
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]
    run = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}").get_run(run_id)

    assert metrics.images == IMAGES
    assert metrics.split == "out-of-fold on train + valid, 3 folds by visual cluster"
    for name in ("loss", "accuracy", "macro_f1", "roc_auc", "calibration_error"):
        figure = getattr(metrics, name)
        assert run.data.metrics[f"out_of_fold_{name}"] == figure.value
        assert run.data.metrics[f"out_of_fold_{name}_low"] == figure.low
        assert run.data.metrics[f"out_of_fold_{name}_high"] == figure.high
        assert summary[name] == pytest.approx(figure.value, abs=5e-5)
        assert (summary[f"{name}_low"], summary[f"{name}_high"]) == pytest.approx((figure.low, figure.high), abs=5e-5)
    assert run.data.metrics["out_of_fold_recall_normal"] == metrics.classes["normal"].recall.value
    assert f"macro F1 {metrics.macro_f1.value:.3f}" in capsys.readouterr().out


def test_the_pictures_stand_in_the_run(out_of_fold: Params, tmp_path: Path) -> None:
    evaluate(out_of_fold)
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]
    fetched = tracking.fetch(run_id, "reports/out_of_fold", tmp_path)
    assert {path.name for path in fetched.iterdir()} == {path.name for path in paths.OUT_OF_FOLD_PLOTS.iterdir()}
    assert (fetched / "confusion.png").stat().st_size > 0
