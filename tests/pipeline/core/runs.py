"""Runs of a training that never took place, for the tests of tracking."""

import mlflow

from pipeline.core import tracking
from pipeline.core.params import Params
from tests.pipeline.conftest import start_run

DIGEST = "ab" * 32


def start(params: Params, digest: str = DIGEST) -> str:
    """Start a run on the data of this digest. Returns its id."""
    return start_run(params, data_digest=digest, image_count=4)


def finished(params: Params, score: float, digest: str = DIGEST, megabytes: float = 8) -> str:
    """A finished run with this score. Returns its id."""
    run_id = start(params, digest)
    tracking.log_metrics(run_id, {tracking.SCORE: score, tracking.SIZE: megabytes, tracking.SCANS: 20})
    tracking.finish_run(run_id, "FINISHED")
    return run_id


def read_back(run_id: str) -> mlflow.entities.Run:
    """The run as MLflow's local store has it."""
    return mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}").get_run(run_id)
