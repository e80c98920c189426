"""The card that stage export writes. tests/pipeline/graph/ tests the graph."""

import json
from pathlib import Path

import numpy as np
import pytest

from chestct.card import Estimate, Fold, ProbeSource
from pipeline import export
from pipeline.core import paths, tracking
from pipeline.core.params import Params
from pipeline.images.manifest import Manifest
from pipeline.judging.calibration import Calibration, OutOfFold
from tests.graphs import tiny_card, tiny_graph
from tests.pipeline.conftest import start_run
from tests.server import ROOT


@pytest.fixture
def evaluated(tracked: Path) -> Params:
    """Parameters in a workspace with the files that the card needs. The run started from the commit c0ffee."""
    params = Params.read(ROOT / "params.yaml").changed({"data.source": "local"})
    card = tiny_card()
    for path in (paths.AUDIT, paths.RUN, paths.OUT_OF_FOLD_CARD):
        path.parent.mkdir(parents=True)
    Manifest(digest="ab" * 32, files=()).write()
    paths.RUN.write_text(json.dumps({"run_id": start_run(params)}), encoding="utf-8")
    counts = {"kind": "mahalanobis", "edges": (0.0, 1.0), "counts": {"chest_ct": (1,)}}
    accuracy = Estimate(value=0.4, low=0.3, high=0.5)
    baselines = {name: {"accuracy": accuracy} for name in ("majority_class", "style_alone")}
    found = {"metrics": card.metrics["out_of_fold"], "baselines": baselines, "checks": {}, "others": {}}
    body = {"edges": (0.5,), "shares": (0.25, 0.75), "clumping": 0.1}
    reference = {"images": 4, "same_scan": 0.2, "facts": {"input_body": body}}
    found |= {"styles": {}, "ood_scores": counts, "reference": reference}
    audit = {"formats": {"PNG L": 9}, "images": {"test": {"normal": 1}}, "test_of_known_scans": {"normal": 1}}
    paths.AUDIT.write_text(json.dumps({**audit, "scans": {"looked_at": 0}}), encoding="utf-8")
    np.savez(paths.EXTRA, allowed=np.ones((2, 4), bool))
    site = ProbeSource(name="site", chest_ct=True, images=3, digest="cd" * 32).model_dump_json()
    np.savez(paths.PROBE_PICTURES, sources=np.array([site]))
    folds = (Fold(images=8, accuracy=0.9, macro_f1=0.8),)
    paths.OUT_OF_FOLD_CARD.write_text(OutOfFold(**found, folds=folds).model_dump_json(), encoding="utf-8")
    return params


def test_the_card_names_the_commit_that_trained_and_the_one_that_exported(
    evaluated: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "git_commit", lambda: "ca5cade")
    known = tiny_card()
    calibration = Calibration(scaling=known.scaling, thresholds=known.thresholds, input_limits=known.input_limits)
    bias = np.zeros(4, np.float32)
    card = export._card(evaluated, calibration, bias, tiny_graph(Path("model.onnx")), 8, {})
    assert (card.lineage.trained_commit, card.lineage.git_commit) == ("c0ffee", "ca5cade")
    assert [fold.accuracy for fold in card.folds] == [0.9]
    assert card.reference is not None
    assert card.reference.facts["input_body"].shares == (0.25, 0.75)
    assert [(source.name, source.images) for source in card.probe_sources] == [("site", 3)]
    assert "images of a local folder" in card.licence
    assert "Kaggle" not in card.model_dump_json()
    assert any("learned from 2 images of other sources" in caveat for caveat in card.caveats)
