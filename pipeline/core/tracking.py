"""The record of every training run. The only module that knows MLflow.

Stages run in processes of their own and add to one run, so every call names its run by id.

Runs go to a local SQLite store in the working directory, which needs no server. MLFLOW_TRACKING_URI, and
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it asks for them, name a server instead; they are taken
from the environment, or else from the file `.env`. A store or server that can't be used raises TrackingError.
"""

import csv
import hashlib
import os
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from platform import node, python_version
from shutil import copyfile
from tempfile import TemporaryDirectory
from time import time
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core import tracking_address
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params

# MLflow reads these while it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what it logs with a traceback it raises, too
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 retry for minutes where no server answers

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run
from mlflow.models import Model, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.db import utils as database

database.MAX_RETRY_COUNT = 4  # 10 retry for minutes where a database can't be opened

EXPERIMENT: Final = "chestct"
SWEEPS: Final = "chestct-sweeps"
"""Where a sweep's runs are: `best_run` does not look there, since a trial leaves no model to store."""
STORE: Final = Path("mlflow.db")
ARTIFACTS: Final = Path("mlartifacts")
SCORE: Final = "out_of_fold_macro_f1"
"""The metric by which runs are compared; nothing measured on the test folder ever is."""

SIZE: Final = "megabytes"
"""The metric that is the graph's size."""
BEST_EPOCH: Final = "best_epoch"
"""The metric that is logged when the curves of a training are all there."""

_SHORT_NAMES: Final = frozenset({"train.learning_rate", "train.batch_size", "prepare.image_size"})
_TRAINED_BY: Final = {"seed", "data", "prepare", "base_model", "train"}
_CODE: Final = ("chestct", "pipeline", "requirements")

_BATCH: Final = 500
"""Metrics in one call; a server takes 1000 at most."""
_PARENT: Final = "mlflow.parentRunId"
_CHECKOUT: Final = "checkout"
"""The tag that tells which folder of which machine a run was started in."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunRecord(NamedTuple):
    """What MLflow holds of a run."""

    run_id: str
    metrics: dict[str, float]
    tags: dict[str, str]


@contextmanager
def _tracking() -> Iterator[MlflowClient]:
    """A client of the store or server that the settings name; its errors become one line, without a password."""
    address = tracking_address.read_address(f"sqlite:///{STORE.resolve()}")
    try:
        yield MlflowClient(address.uri)
    except StageError:
        raise
    except ImportError as error:
        raise TrackingError(
            f"MLflow at {address.shown}: the Python package {error.name} is not installed, and this address needs it; "
            "install it, or name an MLflow server"
        ) from None
    except Exception as error:  # noqa: BLE001 - SQLAlchemy's, requests' and the system's come through
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = textwrap.shorten(address.hide(first), 400, placeholder=" ...")
        raise TrackingError(
            f"MLflow at {address.shown}: {reason} (check {tracking_address.URI}, _USERNAME and _PASSWORD in the "
            "environment or .env)"
        ) from (None if address.secrets else error)


def _find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """Raises TrackingError for one in MLflow's trash, which takes no runs and gives its name to no other."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        shown = tracking_address.read_address(f"sqlite:///{STORE.resolve()}").shown
        raise TrackingError(
            f"MLflow at {shown}: the experiment {name} was deleted; "
            f"`MLFLOW_TRACKING_URI={shown} mlflow experiments restore -x {found.experiment_id}` brings it back"
        )
    return found


def start_run(
    params: Params,
    *,
    data_source: str,
    data_digest: str,
    image_count: int,
    git_commit: str,
    experiment: str = EXPERIMENT,
    name: str | None = None,
    parent: str | None = None,
) -> str:
    """Open a run with what it is trained by and the data's digest; returns its id.

    The parameters of later stages can still change, and MLflow changes none; `report` adds params.yaml as a whole.
    `name` is made up where there is none; the run is shown below the run `parent`.
    """
    with _tracking() as client:
        known = _find_experiment(client, experiment)
        experiment_id = known.experiment_id if known else client.create_experiment(experiment, _artifacts())
        tags = {"data_source": data_source, "data_digest": data_digest, "git_commit": git_commit, _CHECKOUT: _here()}
        if parent is not None:
            tags[_PARENT] = parent
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
        values = {**_flat(params.model_dump(mode="json", include=_TRAINED_BY)), "image_count": str(image_count)}
        client.log_batch(run_id, params=[Param(name, value) for name, value in values.items()])
        dataset = Dataset(name=data_source, digest=data_digest[:8], source_type="local", source=data_source)
        client.log_inputs(run_id, [DatasetInput(dataset)])
        return run_id


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Add figures to the run; `step` is the epoch of a curve's point."""
    now = int(time() * 1000)
    with _tracking() as client:
        client.log_batch(run_id, metrics=[Metric(name, value, now, step or 0) for name, value in metrics.items()])


def log_training(run_id: str, history: Path) -> None:
    """Add the curves of a training to its run, from the `history.csv` of stage train, unless they are there already."""
    with _tracking() as client:
        if BEST_EPOCH in client.get_run(run_id).data.metrics:
            return
        with history.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        now = int(time() * 1000)
        points = [
            Metric(f"{row['network']}_{name}", float(value), now, int(row["epoch"]))
            for row in rows
            for name, value in row.items()
            if name not in ("network", "epoch") and value
        ]
        for start in range(0, len(points), _BATCH):
            client.log_batch(run_id, metrics=points[start : start + _BATCH])
        client.log_artifact(run_id, str(history))
        client.log_batch(run_id, metrics=[Metric(BEST_EPOCH, float(rows[-1]["epoch"]), now, 0)])


def log_artifact(run_id: str, path: Path, folder: str | None = None) -> None:
    """Copy a file, or a folder's content, into the run's `folder`."""
    with _tracking() as client:
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)


def log_model(run_id: str, graph: Path, pixels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Add the ONNX graph as the run's MLflow model `model`, with the signature of these samples.

    `pixels` uint8 [N, height, width, 1], `outputs` the graph's outputs by name for them. The files are laid out here,
    not by mlflow.onnx.save_model, which asks for ONNX Runtime although it runs nothing; mlflow.onnx.load_model and
    mlflow.pyfunc.load_model read them.
    """
    with _tracking() as client, TemporaryDirectory() as folder:
        copyfile(graph, Path(folder, graph.name))
        Path(folder, "requirements.txt").write_text("mlflow\nonnx\nonnxruntime\n", encoding="utf-8")
        model = Model(run_id=run_id, signature=infer_signature({"pixels": pixels}, dict(outputs)))
        model.add_flavor(
            "python_function", loader_module="mlflow.onnx", data=graph.name, python_version=python_version()
        )
        model.add_flavor("onnx", data=graph.name, providers=["CPUExecutionProvider"])
        model.save(str(Path(folder, MLMODEL_FILE_NAME)))
        client.log_artifacts(run_id, folder, "model")


def finish_run(run_id: str, status: Status) -> None:
    """Close the run; only FINISHED ones are compared by `best_run`."""
    with _tracking() as client:
        client.set_terminated(run_id, status)


def reopen_run(run_id: str) -> None:
    """Leave the run out of `best_run` until it is finished again."""
    with _tracking() as client:
        client.update_run(run_id, "RUNNING")


def fail_unfinished(parent: str | None = None) -> None:
    """Close the runs that a dead process left open: those below the run `parent`, or those of train in this checkout.

    Other checkouts that share the store may be training.
    """
    name, tag, value = (EXPERIMENT, _CHECKOUT, _here()) if parent is None else (SWEEPS, _PARENT, parent)
    with _tracking() as client:
        experiment = _find_experiment(client, name)
        if experiment is None:
            return
        found = client.search_runs(
            [experiment.experiment_id], f"attributes.status = 'RUNNING' and tags.`{tag}` = '{value}'"
        )
        for run in found:
            client.set_terminated(run.info.run_id, "FAILED")


def best_run(data_digest: str, max_megabytes: float) -> RunRecord | None:
    """Of the finished runs on these data with a graph of that size at most, the one with the highest SCORE.

    A score on other data is no comparison.
    """
    with _tracking() as client:
        experiment = _find_experiment(client, EXPERIMENT)
        if experiment is None:
            return None
        found = client.search_runs(
            [experiment.experiment_id],
            f"attributes.status = 'FINISHED' and tags.data_digest = '{data_digest}' and metrics.{SCORE} >= 0"
            f" and metrics.{SIZE} <= {max_megabytes}",
            order_by=[f"metrics.{SCORE} DESC", "attributes.start_time DESC"],
            max_results=1,
        )
        return _record(found[0]) if found else None


def trained_commit(run_id: str) -> str:
    """The commit that the run was started from."""
    with _tracking() as client:
        return str(client.get_run(run_id).data.tags["git_commit"])


def fetch(run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of the run into `folder`, which exists; returns where it now lies."""
    with _tracking() as client:
        return Path(client.download_artifacts(run_id, artifact, str(folder)))


def git_commit() -> str:
    """The commit checked out here, with `-dirty` where code differs from it; `unknown` without git.

    Parameters may differ: every run records its own.
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
    """A digest, so that a server is not told the names of machines and folders."""
    return hashlib.sha256(f"{node()}:{Path.cwd()}".encode()).hexdigest()[:12]


def _artifacts() -> str | None:
    """Where a new experiment keeps its files; a server decides that itself."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else str(ARTIFACTS.resolve())


def _flat(section: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """`train: {learning_rate: 1}` as `train.learning_rate` and, being one of _SHORT_NAMES, as `learning_rate` too."""
    flat: dict[str, str] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # A path may hold bytes that are not UTF-8, which no database takes.
            flat[f"{prefix}{name}"] = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
            if f"{prefix}{name}" in _SHORT_NAMES:
                flat[name] = str(value)
    return flat


def _record(run: Run) -> RunRecord:
    return RunRecord(str(run.info.run_id), dict(run.data.metrics), dict(run.data.tags))
