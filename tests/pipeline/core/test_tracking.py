"""What a training leaves in MLflow: parameters, data, metrics and files, once."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline.core import tracking
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from tests.pipeline.core.runs import DIGEST, finished, read_back, start


def test_a_run_has_the_training_parameters_and_short_names_for_the_usual_ones(tracked: Path, params: Params) -> None:
    logged = read_back(start(params)).data.params
    assert logged["learning_rate"] == logged["train.learning_rate"] == str(params.train.learning_rate)
    assert logged["batch_size"] == str(params.train.batch_size)
    assert logged["image_size"] == logged["prepare.image_size"] == str(params.prepare.image_size)
    assert logged["train.augment.flip"] == "True"
    assert logged["image_count"] == "4"
    assert {name.split(".")[0] for name in logged if "." in name} == {"data", "prepare", "base_model", "train"}


def test_a_run_names_the_data_and_the_commit_it_came_from(tracked: Path, params: Params) -> None:
    run = read_back(start(params))
    assert run.data.tags.items() >= {"data_source": "synthetic", "data_digest": DIGEST, "git_commit": "c0ffee"}.items()
    assert run.inputs is not None
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("synthetic", DIGEST[:8])
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert json.loads(used.dataset.profile) == {"images": 4}
    schema = mlflow.data.schema.TensorDatasetSchema.from_dict(json.loads(used.dataset.schema))
    assert [(each.name, each.type, each.shape) for each in schema.features] == [("pixels", np.uint8, (-1, -1, -1, 1))]


def test_the_page_shows_the_experiment_as_training(tracked: Path, params: Params) -> None:
    start(params)
    experiment = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}").get_experiment_by_name("chestct")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_run_is_called_by_its_recipe_and_the_date(tracked: Path, params: Params) -> None:
    name = read_back(start(params)).info.run_name
    assert re.fullmatch(r"efficientnet_lite0 256 px 22 epochs, synthetic, \d{4}-\d\d-\d\d \d\d:\d\d", name)


def test_runs_in_a_database_of_another_folder_keep_their_files_beside_it(
    workspace: Path, params: Params, new_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = workspace / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(new_store, elsewhere / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'runs.db'}")
    file = workspace / "a.txt"
    file.write_text("a", encoding="utf-8")
    tracking.log_artifact(start(params), file)
    assert [path.parts[0] for path in sorted(elsewhere.rglob("a.txt")) for path in [path.relative_to(elsewhere)]] == [
        "mlartifacts"
    ]
    assert sorted(path.name for path in workspace.iterdir()) == ["a.txt", "elsewhere"]


def test_artifacts_come_back_as_they_were_logged(tracked: Path, params: Params, tmp_path: Path) -> None:
    run_id = start(params)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.txt").write_text("a", encoding="utf-8")
    tracking.log_artifact(run_id, folder, "reports")
    assert (tracking.fetch(run_id, "reports", tmp_path) / "a.txt").read_text(encoding="utf-8") == "a"


def test_local_runs_stay_in_the_working_directory(tracked: Path, params: Params) -> None:
    start(params)
    assert sorted(path.name for path in tracked.iterdir()) == ["mlflow.db"]


def test_a_metric_with_steps_keeps_its_curve(tracked: Path, params: Params) -> None:
    run_id = start(params)
    for epoch, loss in enumerate((0.9, 0.5, 0.7), 1):
        tracking.log_metrics(run_id, {"loss": loss}, step=epoch)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(1, 0.9), (2, 0.5), (3, 0.7)]


def test_the_best_run_tells_any_cancer_from_normal_best_out_of_fold(tracked: Path, params: Params) -> None:
    finished(params, 0.7)
    best = finished(params, 0.9)
    finished(params, 0.8)
    record = tracking.best_run(DIGEST, 10)
    assert record is not None
    assert record.run_id == best
    assert record.metrics[tracking.SCORE] == 0.9


def test_a_run_is_found_by_the_beginning_of_its_id_if_no_other_begins_so(tracked: Path, params: Params) -> None:
    wanted = start(params)
    with pytest.raises(StageError, match=r"^ffff: no such run of a training$"):
        tracking.find_run("ffff")
    assert tracking.find_run(wanted).run_id == wanted
    other = start(params)
    while other[0] != wanted[0]:  # until two ids share their first character
        other = start(params)
    with pytest.raises(StageError, match=f"^{wanted[0]}: several runs begin so: .*{wanted}"):
        tracking.find_run(wanted[0])
    record = tracking.find_run(wanted[:12])
    assert (record.run_id, record.tags["data_digest"]) == (wanted, DIGEST)
    assert record.params["train.epochs"] == str(params.train.epochs)


def test_a_run_with_a_large_graph_is_never_the_best(tracked: Path, params: Params) -> None:
    finished(params, 0.95, megabytes=30)
    best = finished(params, 0.9, megabytes=10)
    finished(params, 0.8)
    record = tracking.best_run(DIGEST, 10)
    assert record is not None
    assert record.run_id == best
    assert tracking.best_run(DIGEST, 7.5) is None


def test_runs_on_other_data_and_unfinished_and_failed_runs_are_never_the_best(tracked: Path, params: Params) -> None:
    finished(params, 0.99, digest="cd" * 32)
    unfinished, failed = start(params), start(params)
    for run_id in (unfinished, failed):
        tracking.log_metrics(run_id, {tracking.SCORE: 0.99, tracking.SIZE: 8, tracking.SCANS: 20})
    tracking.finish_run(failed, "FAILED")
    tracking.finish_run(start(params), "FINISHED")  # without a score
    assert tracking.best_run(DIGEST, 10) is None


def test_a_run_whose_folds_divided_scans_is_never_the_best(tracked: Path, params: Params) -> None:
    old = start(params)
    tracking.log_metrics(old, {tracking.SCORE: 0.99, tracking.SIZE: 8})
    tracking.finish_run(old, "FINISHED")
    assert tracking.best_run(DIGEST, 10) is None
    best = finished(params, 0.7)
    record = tracking.best_run(DIGEST, 10)
    assert record is not None
    assert record.run_id == best


def test_runs_of_a_killed_training_are_closed_but_not_those_of_another_checkout(
    tracked: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tracking.STORE.resolve()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    killed, reported = start(params), finished(params, 0.9)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    theirs = start(params)
    monkeypatch.chdir(tracked)
    tracking.fail_unfinished()
    status = {run_id: read_back(run_id).info.status for run_id in (killed, reported, theirs)}
    assert status == {killed: "FAILED", reported: "FINISHED", theirs: "RUNNING"}


def test_a_missing_artifact_is_an_error_of_one_line(tracked: Path, params: Params, tmp_path: Path) -> None:
    run_id = start(params)
    with pytest.raises(StageError, match=r"none\.json") as caught:
        tracking.fetch(run_id, "none.json", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_commit_is_marked_if_code_differs_from_it(workspace: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    assert tracking.git_commit() == "unknown"
    git("init", "-q")
    code = workspace / "pipeline"
    code.mkdir()
    (code / "train.py").write_text("", encoding="utf-8")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (workspace / "notes.txt").write_text("no code", encoding="utf-8")
    assert tracking.git_commit() == commit
    (code / "train.py").write_text("changed", encoding="utf-8")
    assert tracking.git_commit() == f"{commit}-dirty"


def test_telemetry_is_off() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert mlflow.telemetry.get_telemetry_client() is None


def test_a_deleted_experiment_ends_in_one_line_that_says_how_to_bring_it_back(
    tracked: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = finished(params, 0.9)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    for use in (lambda: start(params), lambda: tracking.best_run(DIGEST, 10), tracking.fail_unfinished):
        with pytest.raises(TrackingError, match="the experiment chestct was deleted") as caught:
            use()
        assert "\n" not in str(caught.value)
    setting, *command = shlex.split(str(caught.value).split("`")[1])
    name, _, value = setting.partition("=")
    environment = {**os.environ, name: value}
    subprocess.run([sys.executable, "-m", *command], env=environment, check=True, capture_output=True, timeout=300)
    best = tracking.best_run(DIGEST, 10)
    assert best is not None
    assert best.run_id == run_id


def test_curves_are_logged_once_and_complete(tracked: Path, params: Params) -> None:
    run_id = start(params)
    history = tracked / "history.csv"
    history.write_text(
        "network,epoch,loss,accuracy,val_loss,val_accuracy\n"
        "fold_1,1,0.5,0.7,nan,0.6\nfold_1,2,0.25,0.8,0.4,0.7\nfinal,1,0.5,0.75,,\nfinal,2,0.125,0.875,,\n",
        encoding="utf-8",
    )
    answers = tracked / "out_of_fold.npz"
    answers.write_bytes(b"answers")
    tracking.log_metrics(run_id, {"loss/final": 0.5}, step=1)  # as a training does after each epoch
    tracking.log_training(run_id, history, answers)
    tracking.log_training(run_id, history, answers)
    client = mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")
    curve = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss/final")]
    assert curve == [(1, 0.5), (2, 0.125)]
    metrics = read_back(run_id).data.metrics
    assert metrics["epochs"] == 2
    assert metrics["val_loss/fold_1"] == 0.4
    assert metrics.keys() == {"loss/fold_1", "val_loss/fold_1", "loss/final", "epochs"}
    for path in (history, answers):
        assert tracking.fetch(run_id, path.name, tracked).read_bytes() == path.read_bytes()
    assert tracking.artifacts(run_id) == {"history.csv", "out_of_fold.npz"}
