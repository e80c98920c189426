"""`make store`: the run that is chosen, the gate, and what is stored and released."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chestct.card import ModelCard
from chestct.digests import SUMS, check_sums, write_sums
from chestct.store import CARD, GRAPH
from pipeline import store
from pipeline.core import paths, tracking, tracking_models
from pipeline.core.params import Params
from pipeline.images.manifest import Manifest
from pipeline.report import Reported
from tests.graphs import tiny_metrics, tiny_model
from tests.pipeline.conftest import start_run
from tests.server import ROOT, model_store_at

DIGEST = "ab" * 32
NO_RUN = "store: MLflow has no finished run on these data with a graph of at most 10 MB; `dvc repro` makes one\n"


@pytest.fixture
def params(tracked: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    paths.MANIFEST.parent.mkdir(parents=True)
    Manifest(digest=DIGEST, files=()).write()
    return write_params(
        {
            "store.min_cancer_auc": 0.7,
            "store.max_calibration_error": 0.15,
            "store.min_style_kept": 0.9,
            "store.max_style_accepted_otherwise": 0.02,
        }
    )


def plant(
    params: Params,
    *,
    out_of_fold: float,
    test: float | None = None,
    calibration_error: float = 0.05,
    megabytes: float = 8,
    swap_graph: bool = False,
    swap_card: bool = False,
    swap_figures: bool = False,
) -> str:
    """Make a finished run with everything that the stages add to it, and figures of the test folder if `test` is one.

    Returns its id.
    """
    run_id = start_run(params, data_source="local", data_digest=DIGEST)
    tracking.log_metrics(
        run_id,
        {
            "out_of_fold_cancer_auc": out_of_fold,
            "out_of_fold_calibration_error": calibration_error,
            "out_of_fold_style_kept_or_unfamiliar": 0.95,
            "out_of_fold_style_accepted_otherwise": 0.01,
            tracking.SIZE: megabytes,
            tracking.SCANS: 20,
        },
    )
    folder = Path("planted", run_id)
    card = tiny_model(folder, run_id=run_id)
    digest = card.lineage.model_sha256
    write_sums(folder, GRAPH, CARD)
    if swap_card:
        card.model_copy(update={"classes": card.classes[::-1]}).write(folder / CARD)
    if swap_graph:
        (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes() + b"\0")
    if test is not None:
        report = Path("planted", run_id, "test.json")
        metrics = {"test": tiny_metrics(value=test), "test_new_scans": tiny_metrics()}
        reported = Reported(model_sha256="cd" * 32 if swap_figures else digest, metrics=metrics)
        report.write_text(reported.model_dump_json(), encoding="utf-8")
        tracking.log_artifact(run_id, report, "reports")
        report.unlink()
    audit = Path("planted", paths.AUDIT.name)
    audit.write_text("{}", encoding="utf-8")
    tracking.log_artifact(run_id, audit)
    tracking.log_artifact(run_id, folder, "release")
    if swap_graph:
        tracking.finish_run(run_id, "FINISHED")
        return run_id
    pixels = np.zeros((1, 32, 32, 1), np.uint8)
    tracking_models.log_model(run_id, folder / GRAPH, pixels, {"ood_score": np.zeros(1, np.float32)})
    return run_id


@pytest.fixture
def refuse_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> str:
        raise AssertionError(f"{folder} was stored")

    monkeypatch.setattr(store, "import_model", fail)


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["store", *arguments])
    with pytest.raises(SystemExit) as caught:
        store.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_best_run_on_the_folds_is_stored_and_not_the_best_on_test(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best_on_folds = plant(params, out_of_fold=0.9, test=0.75)
    plant(params, out_of_fold=0.8, test=0.99)
    environment = {**os.environ, "BENTOML_HOME": str(Path("bentoml").resolve()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.store", "--release", "release"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr

    (folder,) = [path.parent for path in Path("bentoml").rglob(GRAPH)]
    tag = done.stdout.splitlines()[-1]
    assert tag == f"chestct:{folder.name}"
    card = ModelCard.read(folder / CARD)
    assert card.lineage.run_id == best_on_folds
    assert set(card.metrics) == {"out_of_fold", "test", "test_new_scans"}
    assert card.metrics["test"].accuracy.value == 0.75
    assert ModelCard.read(Path("release", CARD)) == card
    assert Path("release", GRAPH).read_bytes() == (folder / GRAPH).read_bytes()
    assert json.loads(Path("release", CARD).read_text("utf-8"))["disclaimer"].startswith("Research and education only")
    assert Path("release", paths.AUDIT.name).read_text("utf-8") == "{}"
    check_sums(Path("release"), *(path.name for path in Path("release").iterdir() if path.name != SUMS))
    assert best_on_folds in Path("docs/reference/model-card.md").read_text("utf-8")

    assert tracking_models.champion() == best_on_folds
    other = Path("other").resolve()  # the model store of another machine that reaches the same MLflow
    other.mkdir()
    monkeypatch.setattr(sys, "argv", ["store", "--champion"])
    with model_store_at(other):
        store.main()
    assert capsys.readouterr().out.splitlines()[-1] == tag
    assert (other / "chestct" / folder.name / CARD).exists()


@pytest.mark.usefixtures("refuse_import")
def test_below_the_gate_it_ends_with_3_and_a_table_of_what_missed_and_stores_nothing(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = plant(params, out_of_fold=0.69, test=0.99)
    capsys.readouterr()
    assert exit_code(monkeypatch, "--release", "release") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "out-of-fold figure            wanted       got",
        "cancer_auc                  >= 0.700     0.690",
        f"store: the best run, {run_id}, is below the gate of params.yaml; nothing was stored",
    ]
    assert not Path("release").exists()


@pytest.mark.usefixtures("refuse_import")
def test_only_the_figure_that_misses_the_gate_is_listed(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(params, out_of_fold=0.9, test=0.9, calibration_error=0.2)
    assert exit_code(monkeypatch) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["calibration_error", "<=", "0.150", "0.200"]


@pytest.mark.usefixtures("refuse_import")
def test_without_a_run_on_these_data_it_ends_with_2_and_one_line(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(params, out_of_fold=0.9, test=0.9)
    Manifest(digest="cd" * 32, files=()).write()
    assert exit_code(monkeypatch) == 2
    assert capsys.readouterr().err == NO_RUN


def test_a_better_run_that_is_too_large_is_passed_over(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(params, out_of_fold=0.95, test=0.95, megabytes=30)
    small = plant(params, out_of_fold=0.9, test=0.9)
    taken = []
    monkeypatch.setattr(store, "import_model", lambda folder: taken.append(ModelCard.read(folder / CARD)))
    store.store(params)
    assert [card.lineage.run_id for card in taken] == [small]


@pytest.mark.usefixtures("refuse_import")
def test_if_no_run_is_small_enough_it_ends_with_2_and_one_line(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(params, out_of_fold=0.95, test=0.95, megabytes=30)
    assert exit_code(monkeypatch) == 2
    assert capsys.readouterr().err == NO_RUN


@pytest.mark.usefixtures("refuse_import")
@pytest.mark.parametrize(("file", "swapped"), [(GRAPH, {"swap_graph": True}), (CARD, {"swap_card": True})])
def test_a_file_changed_after_export_is_refused(
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    swapped: dict[str, bool],
) -> None:
    plant(params, out_of_fold=0.9, test=0.9, **swapped)
    assert exit_code(monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} was changed after it was made" in line
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", line))) == 2


@pytest.mark.parametrize("planted", [{}, {"test": 0.9, "swap_figures": True}], ids=["no figures", "another graph's"])
def test_without_test_figures_of_its_graph_a_model_is_stored_without_them_and_a_line_says_so(
    params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], planted: dict[str, Any]
) -> None:
    run_id = plant(params, out_of_fold=0.9, **planted)
    taken: list[ModelCard] = []

    def take(folder: Path) -> str:
        check_sums(folder, GRAPH, CARD)
        taken.append(ModelCard.read(folder / CARD))
        return "chestct:tag"

    monkeypatch.setattr(store, "import_model", take)
    store.store(params)
    assert [set(card.metrics) for card in taken] == [{"out_of_fold"}]
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "chestct:tag"
    assert said.err == (
        f"run {run_id}: the test folder was not opened for its graph, so the card has no figure of it; to add them on "
        "purpose, run `make report` where this run was trained, then `make store`\n"
    )


def test_a_run_without_a_figure_of_the_gate_misses_it(params: Params) -> None:
    found = {"out_of_fold_cancer_auc": 0.9, "out_of_fold_style_accepted_otherwise": 0.0}
    missed = store.below_gate(found, params.store)
    assert [line.split()[0] for line in missed] == ["out-of-fold", "calibration_error", "style_kept_or_unfamiliar"]
