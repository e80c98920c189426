"""`make sweep`: what it tries, what it compares, and that a kill costs one trial at most."""

import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import sleep
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pipeline import sweep
from pipeline.core import paths, tracking
from pipeline.core.errors import DataError, StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.manifest import Manifest
from pipeline.images.phantoms import draw_phantom
from tests.pipeline.conftest import write_pool
from tests.server import ROOT

DIGEST = "ab" * 32
RATE = "train.learning_rate"
QUICK = {
    "prepare.image_size": 32,
    "base_model.backbone": "small",
    "base_model.weights": "none",
    "base_model.dropout": 0,
    "train.epochs": 1,
    "train.label_smoothing": 0.05,
    "train.learning_rate": 3e-4,
    "train.warmup_epochs": 0,
    "train.head_epochs": 0,
    "train.batch_size": 12,
    "sweep.trials": 2,
    "sweep.folds": 2,
    "sweep.uniform": {"train.label_smoothing": [0.0, 0.1]},
    "sweep.log_uniform": {RATE: [1e-4, 1e-2]},
    "sweep.choices": {"train.augment.flip": [True, False]},
}

Write = Callable[[dict[str, Any]], Params]


@pytest.fixture(scope="module")
def new_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without trials. Tests copy it, because making one takes seconds."""
    path = tmp_path_factory.mktemp("sweeps") / paths.SWEEP
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def params(tracked: Path, new_sweeps: Path, write_params: Write) -> Params:
    """Parameters in a workspace with six small phantoms of each class after stage base_model."""
    shutil.copyfile(new_sweeps, paths.SWEEP)
    paths.FEATURES.parent.mkdir(parents=True)
    labels = np.arange(24) % 4
    drawn = [draw_phantom(int(label), np.random.default_rng(index)) for index, label in enumerate(labels)]
    pixels = np.stack([np.asarray(each.convert("L").resize((32, 32)), np.uint8)[..., np.newaxis] for each in drawn])
    write_pool(pixels, labels, np.zeros(24, np.int64))
    np.savez(paths.FEATURES, features=np.zeros((24, 96), np.float32))
    Manifest(digest=DIGEST, files=()).write()
    return write_params(QUICK)


@pytest.fixture(autouse=True)
def determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep it off, because it would also affect later tests."""
    monkeypatch.setattr(sweep.tf.config.experimental, "enable_op_determinism", lambda: None)


def study() -> optuna.Study:
    (name,) = optuna.get_all_study_names(f"sqlite:///{paths.SWEEP}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{paths.SWEEP}")


def runs() -> dict[str, mlflow.entities.Run]:
    """Return the sweeps' MLflow runs by name."""
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    found = client.search_runs([client.get_experiment_by_name(tracking.SWEEPS).experiment_id])
    return {run.info.run_name: run for run in found}


def reported() -> int:
    """Return how many folds all trials together have finished."""
    with closing(sqlite3.connect(f"file:{paths.SWEEP}?mode=ro", uri=True)) as database:
        return int(database.execute("select count(*) from trial_intermediate_values").fetchone()[0])


@pytest.mark.long
def test_a_killed_sweep_tries_the_interrupted_trial_again_and_counts_it_once(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.sweep"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while reported() < 3:  # both folds of the first trial and one of the second
            assert process.poll() is None
            sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=300)
    assert [trial.state for trial in study().trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert runs()["trial 1"].info.status == "RUNNING"

    sweep.sweep(params)

    first, killed, again = study().trials
    assert (first.state, killed.state, again.state) == (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == killed.params
    recorded = runs()
    parent = recorded.pop(study().study_name)
    assert {name: run.info.status for name, run in recorded.items()} == {
        "trial 0": "FINISHED",
        "trial 1": "FAILED",
        "trial 2": "FINISHED",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in recorded.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert recorded["trial 2"].data.metrics[sweep.LOSS] == pytest.approx(again.value)
    assert tracking.best_run(DIGEST, 10) is None, "a trial is not there to be stored"
    assert not paths.SWEEP_SCRATCH.exists()
    assert "2 trials complete, 0 ended early, 1 failed" in capsys.readouterr().out


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Losses after each fold by trial number, instead of training. Other trials have 1."""
    made: dict[int, list[float]] = {}

    def train_folds(pool: object, extra: object, params: Params, name: str) -> Iterator[dict[str, float]]:
        for loss in made.get(int(name.removeprefix("trial ")), [1.0, 1.0]):
            if np.isnan(loss):
                raise MemoryError("too large")
            yield {sweep.LOSS: loss}

    monkeypatch.setattr(sweep, "_train_folds", train_folds)
    return made


def test_the_first_trial_takes_the_current_values_and_the_best_is_printed_as_a_command(
    params: Params, losses: dict[int, list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    losses[0] = [0.5, 0.5]
    sweep.sweep(params)
    assert study().trials[0].params == {
        "train.augment.flip": True,
        "train.label_smoothing": params.train.label_smoothing,
        RATE: params.train.learning_rate,
    }
    command = "dvc exp run -S train.augment.flip=true -S train.label_smoothing=0.05 -S train.learning_rate=0.0003"
    assert capsys.readouterr().out.splitlines()[-1] == command


def test_a_trial_worse_than_half_of_those_before_ends_early_and_counts(
    write_params: Write, params: Params, losses: dict[int, list[float]]
) -> None:
    losses[5] = [2.0, 0.0]
    sweep.sweep(write_params({**QUICK, "sweep.trials": 6}))
    pruned = study().trials[5]
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {0: 2.0})
    assert runs()["trial 5"].info.status == "KILLED"


def test_a_trial_that_raises_is_failed_and_not_tried_again(params: Params, losses: dict[int, list[float]]) -> None:
    losses[1] = [1.0, np.nan]
    with pytest.raises(MemoryError):
        sweep.sweep(params)
    sweep.sweep(params)
    assert [trial.state for trial in study().trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study().trials[2].params != study().trials[1].params
    assert runs()["trial 1"].info.status == "FAILED"


def test_a_trial_that_mlflow_did_not_answer_is_tried_again_and_the_error_is_reported(
    params: Params, losses: dict[int, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses[1] = [0.5, 0.5]
    log_metrics = tracking.log_metrics

    def gone(run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics[sweep.LOSS] == 0.5:
            raise TrackingError("MLflow at http://host: no answer")
        log_metrics(run_id, metrics, step)

    monkeypatch.setattr(tracking, "log_metrics", gone)
    with pytest.raises(TrackingError, match="no answer"):
        sweep.sweep(params)
    monkeypatch.setattr(tracking, "log_metrics", log_metrics)
    sweep.sweep(params)
    assert [trial.state for trial in study().trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study().trials[2].params == study().trials[1].params


def test_a_sweep_with_more_trials_continues_and_one_with_as_many_does_nothing(
    write_params: Write, params: Params, losses: dict[int, list[float]]
) -> None:
    sweep.sweep(params)
    sweep.sweep(params)
    assert len(study().trials) == 2
    sweep.sweep(write_params({**QUICK, "sweep.trials": 4}))
    drawn = [trial.params[RATE] for trial in study().trials]
    assert len(drawn) == len(set(drawn)) == 4


@pytest.mark.long
def test_values_that_kill_the_process_are_given_up(params: Params, losses: dict[int, list[float]]) -> None:
    sweep.sweep(params)
    interrupted = study()
    for _ in range(sweep.MAX_ATTEMPTS):
        interrupted.ask({RATE: optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)})
        sweep._retry_interrupted(interrupted, interrupted.user_attrs["mlflow_run"])
    assert Counter(trial.state for trial in interrupted.trials) == {TrialState.COMPLETE: 2, TrialState.FAIL: 3}
    assert len({trial.params[RATE] for trial in interrupted.trials[2:]}) == 1


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"train.epochs": 2}, {"sweep.folds": 3}, {"sweep.choices": {"train.balance": ["weights", "none"]}}],
)
def test_trials_with_other_parameters_are_not_compared(write_params: Write, changes: dict[str, Any]) -> None:
    name = sweep._study_name(write_params(QUICK), DIGEST)
    assert sweep._study_name(write_params({**QUICK, **changes}), DIGEST) != name


def test_other_data_start_a_new_sweep_but_more_trials_and_other_current_values_do_not(write_params: Write) -> None:
    name = sweep._study_name(write_params(QUICK), DIGEST)
    same = write_params({**QUICK, "sweep.trials": 9, RATE: 1e-3})
    assert sweep._study_name(same, DIGEST) == name
    assert sweep._study_name(same, "cd" * 32) != name


def test_two_sweeps_at_once_are_refused(params: Params) -> None:
    with Path("sweep.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another"):
            sweep.sweep(params)


def test_a_missing_file_is_named(params: Params) -> None:
    paths.FEATURES.unlink()
    with pytest.raises(DataError, match=r"models/features\.npz.*dvc repro base_model"):
        sweep.sweep(params)


def test_nothing_to_search_is_named(write_params: Write, params: Params) -> None:
    nothing = write_params({**QUICK, "sweep.uniform": {}, "sweep.log_uniform": {}, "sweep.choices": {}})
    with pytest.raises(StageError, match="section sweep"):
        sweep.sweep(nothing)


def test_the_loss_does_not_depend_on_the_scale_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    logits = rng.normal(size=(80, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[labels]
    plain, loud = sweep._measure(logits, labels), sweep._measure(logits * 3, labels)
    assert plain == pytest.approx(loud, abs=1e-3)
    assert 0 < plain[sweep.LOSS] < np.log(4)


def test_a_network_that_diverged_has_an_infinite_loss() -> None:
    assert sweep._measure(np.full((8, 4), np.nan, np.float32), np.arange(8) % 4) == {sweep.LOSS: np.inf}
