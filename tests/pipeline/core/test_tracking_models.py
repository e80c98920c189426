"""The graph as a model of MLflow, and the registry."""

from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline.core import tracking, tracking_models
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from tests.graphs import tiny_graph
from tests.pipeline.conftest import start_run
from tests.server import ROOT


@pytest.fixture
def graph(tracked: Path) -> Path:
    return tiny_graph(tracked / "model.onnx")


def record(graph: Path, data_source: str = "local") -> str:
    """Open a run and log the graph as its model. Return the run's id."""
    run_id = start_run(Params.read(ROOT / "params.yaml"), data_source=data_source)
    outputs = {"probabilities": np.zeros((2, 4), np.float32), "ood_score": np.zeros(2, np.float32)}
    tracking_models.log_model(run_id, graph, np.zeros((2, 32, 32, 1), np.uint8), outputs)
    return run_id


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}")


def models_of(run_id: str) -> list[str]:
    """Ids of the run's models."""
    run = client().get_run(run_id)
    assert run.outputs is not None
    return [each.model_id for each in run.outputs.model_outputs]


def test_the_model_is_logged_with_its_signature_and_loads_again_and_the_run_is_finished(graph: Path) -> None:
    run_id = record(graph)
    assert client().get_run(run_id).info.status == "FINISHED"
    (model_id,) = models_of(run_id)
    signature = mlflow.models.get_model_info(f"models:/{model_id}").signature
    assert signature is not None
    assert signature.inputs.to_dict() == [
        {"name": "pixels", "type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": (-1, 32, 32, 1)}}
    ]
    assert [(each["name"], each["tensor-spec"]["shape"]) for each in signature.outputs.to_dict()] == [
        ("probabilities", (-1, 4)),
        ("ood_score", (-1,)),
    ]
    loaded = mlflow.onnx.load_model(f"models:/{model_id}")
    assert [value.name for value in loaded.graph.input] == ["pixels"]
    assert loaded.metadata_props == mlflow.onnx.load_model(f"models:/{model_id}").metadata_props


def test_a_graph_that_cannot_be_read_fails_the_run(graph: Path) -> None:
    graph.write_bytes(b"no graph")
    run_id = start_run(Params.read(ROOT / "params.yaml"))
    with pytest.raises(StageError) as caught:
        tracking_models.log_model(run_id, graph, np.zeros((1, 32, 32, 1), np.uint8), {})
    assert "\n" not in str(caught.value)
    assert client().get_run(run_id).info.status == "FAILED"


def test_the_champion_is_the_run_that_was_crowned_last(graph: Path) -> None:
    with pytest.raises(StageError, match=r"^MLflow at sqlite:.* has no champion; `make store` makes the best run one$"):
        tracking_models.champion()
    first, second = record(graph), record(graph)
    assert tracking_models.crown(first, "chestct:1") == "1"
    assert tracking_models.champion() == first
    assert tracking_models.crown(second, "chestct:2") == "2"
    assert tracking_models.champion() == second
    champion = client().get_model_version_by_alias("chestct", "champion")
    assert (champion.run_id, champion.tags["bentoml_tag"]) == (second, "chestct:2")


def test_a_model_is_registered_once(graph: Path) -> None:
    run_id = record(graph)
    assert [tracking_models.crown(run_id, "chestct:1") for _ in range(2)] == ["1", "1"]


def test_a_run_without_a_model_is_not_crowned(graph: Path) -> None:
    crowned = record(graph)
    tracking_models.crown(crowned, "chestct:1")
    assert tracking_models.crown(start_run(Params.read(ROOT / "params.yaml")), "chestct:2") is None
    assert tracking_models.champion() == crowned


def test_a_model_of_phantoms_is_never_the_champion(graph: Path) -> None:
    crowned = record(graph)
    tracking_models.crown(crowned, "chestct:1")
    tracking_models.crown(record(graph, "synthetic"), "chestct:2")
    assert tracking_models.champion() == crowned
    assert client().get_model_version_by_alias("chestct-synthetic", "champion").tags["bentoml_tag"] == "chestct:2"
