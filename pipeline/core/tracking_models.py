"""A run's graph as a model of MLflow, and MLflow's registry, in which the alias `champion` names the stored model.

Every function raises TrackingError as those of pipeline.core.tracking do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from numpy.typing import NDArray

from pipeline.core import tracking
from pipeline.core.errors import StageError

REGISTERED: Final = "chestct"
"""Name of the model in the registry. Models of phantoms have the name SYNTHETIC, so that a demo crowns none of them."""
SYNTHETIC: Final = "chestct-synthetic"
CHAMPION: Final = "champion"
"""Alias of the version that `make store` stored last."""
TAG: Final = "bentoml_tag"
"""Tag of a version: the model's tag in the BentoML store."""

_SOURCE: Final = "source_model"
"""Tag of a version: the address of the run's model. MLflow turns the version's own source into a path."""


@contextmanager
def _connected() -> Iterator[MlflowClient]:
    """As tracking.connected. MLflow's own functions, which take no client, use the same store."""
    with tracking.connected() as client:
        mlflow.set_tracking_uri(client.tracking_uri)
        yield client


def log_model(run_id: str, graph: Path, pixels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Add the ONNX graph as the run's model `model`, and finish the run. On an error, the run has failed.

    `pixels` uint8 [N, height, width, 1] and the graph's `outputs` for them give its signature. mlflow.onnx.load_model
    and mlflow.pyfunc.load_model can read the model.
    """
    with _connected(), mlflow.start_run(run_id=run_id):
        mlflow.onnx.log_model(
            onnx.load(graph),
            name="model",
            signature=infer_signature({"pixels": pixels}, dict(outputs)),
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=["mlflow", "onnx", "onnxruntime"],
            save_as_external_data=False,
        )


def crown(run_id: str, tag: str) -> str | None:
    """Register the run's model, unless it is registered, and make it the champion. Return its version.

    `tag` is its name in the BentoML store. Returns None if the run has no model, as runs of older releases.
    """
    with _connected() as client:
        run = client.get_run(run_id)
        models = client.search_logged_models(
            [run.info.experiment_id],
            f"source_run_id = '{run_id}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            max_results=1,
        )
        if not models:
            return None
        name = SYNTHETIC if run.data.tags.get("data_source") == "synthetic" else REGISTERED
        version = _version_of(client, name, models[0].model_id, run_id)
        client.set_model_version_tag(name, version, TAG, tag)
        client.set_registered_model_alias(name, CHAMPION, version)
        return version


def _version_of(client: MlflowClient, name: str, model_id: str, run_id: str) -> str:
    """Return the version of the model that is registered as `name`, and register it if it has none."""
    source = f"models:/{model_id}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if version.tags.get(_SOURCE) == source:
            return str(version.version)
    return str(client.create_model_version(name, source, run_id, {_SOURCE: source}, model_id=model_id).version)


def champion() -> str:
    """Return the id of the run of the champion. Raises StageError if there is none."""
    with _connected() as client:
        try:
            version = client.get_model_version_by_alias(REGISTERED, CHAMPION)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            where = tracking.address().shown
            raise StageError(f"MLflow at {where} has no champion; `make store` makes the best run one") from None
        return str(version.run_id)
