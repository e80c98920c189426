"""Stage record: what the MLflow run of a graph holds."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import onnx
import pytest

from chestct.card import ModelCard
from chestct.store import CARD, GRAPH
from pipeline.core import paths, tracking, tracking_models
from pipeline.core.params import Params
from pipeline.record import record
from tests.graphs import tiny_model
from tests.pipeline.conftest import start_run
from tests.server import ROOT


@pytest.fixture
def exported(tracked: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    """The workspace after stage export."""
    params = write_params({})
    tiny_model(paths.RELEASE, data_source="synthetic", run_id=start_run(params))
    for path in (paths.AUDIT, paths.CONTACT_SHEET, paths.QUANTISATION, paths.OUT_OF_FOLD_PLOTS / "confusion.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return params


def run_id() -> str:
    return ModelCard.read(paths.RELEASE / CARD).lineage.run_id


def run() -> mlflow.entities.Run:
    return mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}").get_run(run_id())


def test_the_run_receives_the_figures_the_release_and_the_parameters_and_is_finished(
    exported: Params, tmp_path: Path
) -> None:
    paths.HISTORY.write_text("network,epoch,loss,val_loss\nfinal,1,0.5,\n", encoding="utf-8")
    paths.OUT_OF_FOLD.write_bytes(b"answers")
    record(exported)
    figures = run().data.metrics
    assert run().info.status == "FINISHED"
    assert (figures["loss/final"], figures["epochs"]) == (0.5, 1)  # as train had no answer from MLflow
    assert figures["scans"] == 20
    assert figures["megabytes"] == (paths.RELEASE / GRAPH).stat().st_size / 1e6
    assert not [name for name in figures if name.startswith("test")]
    card = ModelCard.read(paths.RELEASE / CARD)
    accuracy = card.metrics["out_of_fold"].accuracy
    assert figures["out_of_fold_accuracy"] == accuracy.value
    assert len(figures) + 20 <= 30, "ten folds add 20 curves"
    stored = json.loads(tracking.fetch(run_id(), tracking.FIGURES, tmp_path).read_bytes())
    assert stored.items() >= {name: value for name, value in figures.items() if name.startswith("out_of_fold")}.items()
    assert (stored["out_of_fold_accuracy_low"], stored["out_of_fold_accuracy_high"]) == (accuracy.low, accuracy.high)
    assert stored["out_of_fold_recall_normal"] == card.metrics["out_of_fold"].classes["normal"].recall.value
    assert stored["out_of_fold_flips"] == card.checks["flips"].value
    here = {
        "params.yaml": paths.PARAMS,
        "audit.json": paths.AUDIT,
        "contact_sheet.png": paths.CONTACT_SHEET,
        "reports/quantisation.json": paths.QUANTISATION,
        "reports/out_of_fold/confusion.png": paths.OUT_OF_FOLD_PLOTS / "confusion.png",
        "release/model.onnx": paths.RELEASE / GRAPH,
        "release/card.json": paths.RELEASE / CARD,
    }
    for name, path in here.items():
        assert tracking.fetch(run_id(), name, tmp_path).read_bytes() == path.read_bytes(), name


def export_another() -> str:
    """Write another graph of the same run, as stage export does with other parameters, and return its digest."""
    graph = onnx.load(paths.RELEASE / GRAPH)
    graph.doc_string = "another"
    onnx.save(graph, paths.RELEASE / GRAPH)
    card = ModelCard.read(paths.RELEASE / CARD)
    digest = hashlib.sha256((paths.RELEASE / GRAPH).read_bytes()).hexdigest()
    lineage = card.lineage.model_copy(update={"model_sha256": digest})
    card.model_copy(update={"lineage": lineage}).write(paths.RELEASE / CARD)
    return digest


def in_run(scratch: Path) -> tuple[str, str]:
    """The digest of the run's graph, and the one that its card names."""
    graph = tracking.fetch(run_id(), f"release/{GRAPH}", scratch).read_bytes()
    card = ModelCard.read(tracking.fetch(run_id(), f"release/{CARD}", scratch))
    return hashlib.sha256(graph).hexdigest(), card.lineage.model_sha256


def test_a_run_holds_the_graph_that_was_recorded_last_and_no_other(exported: Params, tmp_path: Path) -> None:
    record(exported)
    first = ModelCard.read(paths.RELEASE / CARD).lineage.model_sha256
    second = export_another()
    assert first != second
    assert in_run(tmp_path) == (first, first)
    record(exported)
    assert in_run(tmp_path) == (second, second)


def test_a_record_that_is_cut_off_leaves_no_finished_run(exported: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    record(exported)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking_models, "log_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(exported)
    assert run().info.status == "RUNNING"


@pytest.mark.parametrize("name", ["ingest", "prepare", "base_model", "trust", "evaluate", "export"])
def test_of_the_stages_only_train_and_record_write_into_the_run(name: str) -> None:
    text = (ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8")
    assert not re.findall(r"tracking\.(?:log|finish|start)_\w+", text)
