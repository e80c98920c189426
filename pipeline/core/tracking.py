"""Records training runs in MLflow. Beside this module, only pipeline.core.tracking_models imports MLflow.

Each stage is a separate process and adds to the same run, so every function takes the id of the run.

Runs go to a local SQLite store in the working directory, which needs no server. MLFLOW_TRACKING_URI names a server
instead, with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD if it asks for them. They come from the environment
or from the file `.env`. Every function raises TrackingError if the store or the server cannot be used.
"""

import csv
import hashlib
import json
import os
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from platform import node
from time import time
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from pipeline.core import tracking_address
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params

# MLflow reads these on import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # it also raises what it logs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own 7 take minutes if no server answers

from mlflow import MlflowClient
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run
from mlflow.store.db import utils as database
from mlflow.types import Schema, TensorSpec

database.MAX_RETRY_COUNT = 4  # its own 10 take minutes if a database cannot be opened

EXPERIMENT: Final = "chestct"
SWEEPS: Final = "chestct-sweeps"
"""Experiment of the sweeps. `best_run` ignores it, because a trial leaves no model to store."""
STORE: Final = Path("mlflow.db")
ARTIFACTS: Final = Path("mlartifacts")
SCORE: Final = "out_of_fold_cancer_auc"
"""Metric that compares runs. No metric of the test folder does."""
CURVES: Final = ("loss", "val_loss")
"""The columns of history.csv that are curves of the run. With ten folds, a run has 30 metrics at most."""
FIGURES: Final = "figures.json"
"""Artifact with all figures of the card and their intervals. Only a few of them are metrics."""
SIZE: Final = "megabytes"
"""Metric with the size of the graph."""
SCANS: Final = "scans"
"""Metric with the number of scans that the folds keep whole. Runs before scans were known lack it."""
EPOCHS: Final = "epochs"
"""Metric that is logged last, after all curves of a training."""

_SHORT_NAMES: Final = frozenset({"train.learning_rate", "train.batch_size", "prepare.image_size"})
_TRAINED_BY: Final = {"seed", "data", "prepare", "base_model", "train"}
_CODE: Final = ("chestct", "pipeline", "requirements")

_BATCH: Final = 500
"""Metrics in one call. A server takes 1000 at most."""
_MOST_RUNS: Final = 50_000
"""MLflow returns no more in one call."""
_KIND: Final = {"mlflow.experimentKind": "custom_model_development"}
"""Says to MLflow's page that the runs are trainings. Its first view is still that of language models."""
_PARENT: Final = "mlflow.parentRunId"
_CHECKOUT: Final = "checkout"
"""Tag with a digest of the machine and the folder that the run was started in."""


class RunRecord(NamedTuple):
    run_id: str
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]

    @classmethod
    def of(cls, run: Run) -> "RunRecord":
        return cls(run.info.run_id, run.data.metrics, run.data.params, run.data.tags)


@contextmanager
def connected() -> Iterator[MlflowClient]:
    """Yield a client for the store or the server. Turn its errors into TrackingError: one line without a password."""
    used = address()
    try:
        yield MlflowClient(used.uri)
    except StageError:
        raise
    except ImportError as error:
        raise TrackingError(
            f"MLflow at {used.shown}: the Python package {error.name} is not installed, and this address needs it; "
            "install it, or name an MLflow server"
        ) from None
    except Exception as error:  # noqa: BLE001 - SQLAlchemy, requests and the system raise errors of their own
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = textwrap.shorten(used.hide(first), 400, placeholder=" ...")
        raise TrackingError(
            f"MLflow at {used.shown}: {reason} (check {tracking_address.URI}, _USERNAME and _PASSWORD in the "
            "environment or .env)"
        ) from (None if used.secrets else error)


def address() -> tracking_address.Address:
    """Return the address that runs are recorded at. Raises TrackingError if it can't be used."""
    return tracking_address.read_address(f"sqlite:///{STORE.resolve()}")


def _artifacts_beside_store() -> str | None:
    """The folder ARTIFACTS beside the database file, or None for a server, which has its own."""
    scheme, _, path = address().uri.partition(":///")
    return str(Path(path).with_name(ARTIFACTS.name).resolve()) if scheme == "sqlite" else None


def _find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """Raise TrackingError if the experiment was deleted: it takes no runs, and no other can have its name."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        shown = address().shown
        raise TrackingError(
            f"MLflow at {shown}: the experiment {name} was deleted; "
            f"`MLFLOW_TRACKING_URI={shown} mlflow experiments restore -x {found.experiment_id}` brings it back"
        )
    return found


def _search(client: MlflowClient, experiment: str, query: str, **options: Any) -> Sequence[Run]:
    """Return the experiment's runs that match the query, or none if there is no such experiment."""
    found = _find_experiment(client, experiment)
    return client.search_runs([found.experiment_id], query, **options) if found else []


def start_run(
    params: Params,
    *,
    data_source: str,
    data_digest: str,
    image_count: int,
    experiment: str = EXPERIMENT,
    name: str | None = None,
    parent: str | None = None,
) -> str:
    """Open a run with the parameters of the training, the data's digest and the git commit. Return its id.

    The parameters of later stages may still change, and MLflow does not let them; stage record adds params.yaml as a
    file. A run without a `name` is called by its recipe and the date. `parent` is the id of a run to show this one
    below.
    """
    with connected() as client:
        known = _find_experiment(client, experiment)
        if known:
            experiment_id = known.experiment_id
        else:
            experiment_id = client.create_experiment(experiment, _artifacts_beside_store(), _KIND)
        tags = {"data_source": data_source, "data_digest": data_digest, "git_commit": git_commit(), _CHECKOUT: _here()}
        if parent is not None:
            tags[_PARENT] = parent
        name = name or _recipe(params, data_source)
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
        values = {**_flat(params.model_dump(mode="json", include=_TRAINED_BY)), "image_count": str(image_count)}
        client.log_batch(run_id, params=[Param(name, value) for name, value in values.items()])
        client.log_inputs(run_id, [_dataset(data_source, data_digest, image_count)])
        return run_id


def _recipe(params: Params, data_source: str) -> str:
    """What was trained, on what and when, such as `efficientnet_lite0 256 px 22 epochs, kaggle, 2026-01-31 17:45`."""
    trained = f"{params.base_model.backbone} {params.prepare.image_size} px {params.train.epochs} epochs"
    return f"{trained}, {data_source}, {datetime.now().astimezone():%Y-%m-%d %H:%M}"


def _dataset(source: str, digest: str, image_count: int) -> DatasetInput:
    """The images that train learns from, as MLflow describes a data set."""
    schema = TensorDatasetSchema(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 1), "pixels")]),
        Schema([TensorSpec(np.dtype(np.int64), (-1,), "labels")]),
    )
    dataset = Dataset(
        name=source,
        digest=digest[:8],
        source_type="local",
        source=source,
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps({"images": image_count}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Add metrics to the run. `step` makes them points of curves."""
    now = int(time() * 1000)
    with connected() as client:
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])


def log_training(run_id: str, history: Path, answers: Path) -> None:
    """Add stage train's history.csv, its out_of_fold.npz, and what its curves lack, unless this was done before."""
    with connected() as client:
        if EPOCHS in client.get_run(run_id).data.metrics:
            return
        with history.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curves: dict[str, dict[int, float]] = {}
        for row in rows:
            for name, value in curve_points(row["network"], row).items():
                curves.setdefault(name, {})[int(row["epoch"])] = value
        now = int(time() * 1000)
        points = [
            Metric(name, value, now, epoch)
            for name, curve in curves.items()
            for known in [{point.step for point in client.get_metric_history(run_id, name)}]
            for epoch, value in curve.items()
            if epoch not in known
        ]
        for start in range(0, len(points), _BATCH):
            client.log_batch(run_id, metrics=points[start : start + _BATCH])
        for path in (history, answers):
            client.log_artifact(run_id, str(path))
        client.log_batch(run_id, metrics=[Metric(EPOCHS, float(rows[-1]["epoch"]), now, 0)])


def curve_points(network: str, row: Mapping[str, float | str]) -> dict[str, float]:
    """Return the metrics of one epoch of `network`, such as `loss/fold_1`. MLflow's charts group them by the slash."""
    return {f"{name}/{network}": float(row[name]) for name in CURVES if row.get(name, "") != ""}


def log_figures(run_id: str, figures: Mapping[str, float], shown: Sequence[str]) -> None:
    """Add all figures to the run as the file FIGURES, and those of them that `shown` names as metrics."""
    with connected() as client:
        client.log_dict(run_id, dict(figures), FIGURES)
    log_metrics(run_id, {name: figures[name] for name in shown if name in figures})


def log_artifact(run_id: str, path: Path, folder: str | None = None) -> None:
    """Copy a file, or the content of a folder, into the run's `folder`."""
    with connected() as client:
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)


def finish_run(run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Close the run. `best_run` considers only FINISHED runs."""
    with connected() as client:
        client.set_terminated(run_id, status)


def reopen_run(run_id: str) -> None:
    """Hide the run from `best_run` until it is finished again."""
    with connected() as client:
        client.update_run(run_id, "RUNNING")


def fail_unfinished(parent: str | None = None) -> None:
    """Mark open runs of a dead process as failed: those below the run `parent`, or those of train in this checkout.

    Other checkouts may share the store and be training.
    """
    name, tag, value = (EXPERIMENT, _CHECKOUT, _here()) if parent is None else (SWEEPS, _PARENT, parent)
    with connected() as client:
        for run in _search(client, name, f"attributes.status = 'RUNNING' and tags.`{tag}` = '{value}'"):
            client.set_terminated(run.info.run_id, "FAILED")


def best_run(data_digest: str, max_megabytes: float) -> RunRecord | None:
    """Return the finished run with the highest SCORE, of those on these data with a small enough graph.

    Runs whose folds did not keep scans whole are left out: their score is too high.
    """
    with connected() as client:
        found = _search(
            client,
            EXPERIMENT,
            f"attributes.status = 'FINISHED' and tags.data_digest = '{data_digest}' and metrics.{SCORE} >= 0"
            f" and metrics.{SIZE} <= {max_megabytes} and metrics.{SCANS} >= 1",
            order_by=[f"metrics.{SCORE} DESC", "attributes.start_time DESC"],
            max_results=1,
        )
        return RunRecord.of(found[0]) if found else None


def find_run(prefix: str) -> RunRecord:
    """Return the training whose id begins with `prefix`. Raises StageError if there is none, or more than one."""
    with connected() as client:
        runs = _search(client, EXPERIMENT, "", max_results=_MOST_RUNS)
        found = [run for run in runs if run.info.run_id.startswith(prefix)]
        if len(found) != 1:
            ids = ", ".join(run.info.run_id for run in found[:3])
            raise StageError(f"{prefix}: {f'several runs begin so: {ids}' if found else 'no such run of a training'}")
        return RunRecord.of(found[0])


def artifacts(run_id: str, folder: str | None = None) -> set[str]:
    """Return the paths of the artifacts in the run's `folder`."""
    with connected() as client:
        return {each.path for each in client.list_artifacts(run_id, folder)}


def trained_commit(run_id: str) -> str:
    """Return the commit that the run was started from."""
    with connected() as client:
        return str(client.get_run(run_id).data.tags["git_commit"])


def fetch(run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of the run into the existing `folder`. Return the path of the copy."""
    with connected() as client:
        return Path(client.download_artifacts(run_id, artifact, str(folder)))


def git_commit() -> str:
    """Return the current commit, with `-dirty` if code differs from it, or `unknown` without git.

    Changed parameters do not count, because every run records its parameters.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", *_CODE) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip()


def _here() -> str:
    """Return a digest of this machine's name and folder, so that the server does not see them."""
    return hashlib.sha256(f"{node()}:{Path.cwd()}".encode()).hexdigest()[:12]


def _flat(section: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten `train: {learning_rate: 1}` to `train.learning_rate`. Those of _SHORT_NAMES also get their short name."""
    flat: dict[str, str] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # A path may contain bytes that are not UTF-8, and databases refuse them.
            flat[f"{prefix}{name}"] = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
            if f"{prefix}{name}" in _SHORT_NAMES:
                flat[name] = str(value)
    return flat
