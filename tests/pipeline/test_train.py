"""Training that is interrupted, diverges or loses MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

from pipeline import train
from pipeline.base_model import base_model
from pipeline.core import paths, runner, tracking
from pipeline.core.curves import Curves
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.network import fitting
from pipeline.store import store
from tests.pipeline.conftest import start_run, write_pool


@pytest.fixture
def params(tracked: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    """Parameters in a workspace with every file that train reads."""
    for path in (paths.FEATURES, paths.MANIFEST):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_pool(np.zeros((8, 32, 32, 1), np.uint8), np.arange(8) % 4, np.arange(8) % 2)
    paths.BASE_MODEL.write_bytes(b"untrained")
    np.savez(paths.FEATURES, features=np.zeros((8, 3), np.float32))
    paths.MANIFEST.write_text(json.dumps({"digest": "ab" * 32, "files": []}), encoding="utf-8")
    small = {"prepare.image_size": 32, "base_model.backbone": "small", "base_model.weights": "none"}
    return write_params({"prepare.folds": 2, **small})


def test_an_interrupted_training_leaves_no_network_and_no_run_to_store(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(params)
    assert not any(path.exists() for path in (paths.FOLD_MODELS, paths.FINAL_MODEL, paths.OUT_OF_FOLD, paths.RUN))
    with pytest.raises(SystemExit) as caught:
        runner.run(store)
    assert caught.value.code == 2
    assert "no finished run" in capsys.readouterr().err


def test_a_run_that_a_killed_training_left_open_is_closed_by_the_next(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = start_run(params)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(params)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    assert client.get_run(killed).info.status == "FAILED"


class Saved:
    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"network")


def test_the_networks_stay_if_mlflow_stops_answering(
    params: Params, tracked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: (Saved(), [{"loss": 0.5, "val_loss": 0.5}]))

    def score(*_: object) -> np.ndarray:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/gone.db")
        return np.zeros((8, 4), np.float32)

    monkeypatch.setattr(train, "_score_folds", score)
    train.train(params)
    assert all(path.is_file() for path in (paths.FINAL_MODEL, paths.OUT_OF_FOLD, paths.HISTORY, paths.RUN))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: MLflow at sqlite:////dev/null/gone.db")
    assert line.endswith("the training is kept, and stage record adds its curves")
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.artifacts(run_id) == set()
    tracking.log_training(run_id, paths.HISTORY, paths.OUT_OF_FOLD)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    assert client.get_run(run_id).data.metrics.items() >= {"loss/final": 0.5, "epochs": 1}.items()
    with np.load(tracking.fetch(run_id, paths.OUT_OF_FOLD.name, tracked)) as answers:
        arrays = dict(answers)
    assert arrays["sha256"].tolist() == [f"{index:064x}" for index in range(8)]
    for name, values in {"labels": np.arange(8) % 4, "folds": np.arange(8) % 2, "scans": np.arange(8)}.items():
        assert arrays[name].tolist() == values.tolist()
    assert arrays["logits"].shape == (8, 4)


def test_the_error_that_ended_a_training_is_reported_even_if_mlflow_fails_too(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/gone.db")
        raise StageError("diverged")

    monkeypatch.setattr(fitting, "fit", diverge)
    with pytest.raises(StageError, match=r"^diverged$"):
        train.train(params)


@pytest.mark.parametrize(
    ("logit", "loss", "what"), [(np.nan, 0.5, "a fold's network"), (0.0, np.nan, "the network of all images")]
)
def test_a_training_that_diverged_ends_and_leaves_no_final_network(
    params: Params, monkeypatch: pytest.MonkeyPatch, logit: float, loss: float, what: str
) -> None:
    monkeypatch.setattr(fitting, "fit", lambda *_, **__: (Saved(), [{"loss": loss, "val_loss": 0.5}]))
    monkeypatch.setattr(train, "_score_folds", lambda *_: np.full((8, 4), logit, np.float32))
    with pytest.raises(StageError, match=f"{what} diverged.*lower train.learning_rate"):
        train.train(params)
    assert not any(path.exists() for path in (paths.FINAL_MODEL, paths.RUN))


def test_a_killed_training_continues_behind_the_last_network_that_it_finished(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model(params)
    fitted: list[str] = []

    def fit(*arguments: object, **_: object) -> tuple[keras.Model, list[dict[str, float]]]:
        fitted.append(str(arguments[-1]))
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return keras.models.load_model(paths.BASE_MODEL, compile=False), [{"loss": 0.5, "val_loss": 0.5}]

    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        train.train(params)
    train.train(params)
    assert fitted == ["fold 1 of 2", "fold 2 of 2", "fold 2 of 2", "all images"]
    assert not paths.TRAINING.exists()
    train.train(params)
    assert fitted[4:] == ["fold 1 of 2", "fold 2 of 2", "all images"], "a finished training leaves nothing to take"


def test_another_parameter_starts_a_training_anew(params: Params) -> None:
    paths.BASE_MODEL.write_bytes(b"untrained")
    assert train._key(params) == train._key(params.changed({"report.bootstrap": 10}))
    assert train._key(params) != train._key(params.changed({"train.epochs": 3}))


def test_the_losses_of_each_epoch_are_in_mlflow_before_the_training_ends(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*arguments: object, on_epoch: Callable[[int, dict[str, float]], None], **_: object) -> None:
        on_epoch(1, {"loss": 0.5, "accuracy": 0.7, "val_loss": 0.75})
        on_epoch(2, {"loss": 0.25, "accuracy": 0.8, "val_loss": 0.625})
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        train.train(params)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    (run,) = client.search_runs([client.get_experiment_by_name("chestct").experiment_id])
    assert run.data.metrics == {"loss/fold_1": 0.25, "val_loss/fold_1": 0.625}
    curve = client.get_metric_history(run.info.run_id, "loss/fold_1")
    assert [(point.step, point.value) for point in curve] == [(1, 0.5), (2, 0.25)]


def test_a_training_goes_on_without_mlflow_and_says_so_once(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = start_run(params)
    curves = Curves(run_id)
    curves.add("fold_1", 1, {"loss": 0.5})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/gone.db")
    for epoch in (2, 3):
        curves.add("fold_1", epoch, {"loss": 0.25})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: MLflow at sqlite:////dev/null/gone.db")
    assert line.endswith("the training goes on, and its curves follow at the end")
