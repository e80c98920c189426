"""`make report`: the figures of the test folder, and what ends it before there are any."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from chestct.card import Metrics, ModelCard
from chestct.store import CARD, GRAPH
from pipeline.core import paths, tracking
from pipeline.core.params import Params
from pipeline.images import input_facts
from pipeline.ingest import ingest
from pipeline.prepare import prepare
from pipeline.report import Reported, main, report
from tests.graphs import plain_facts, tiny_model, tiny_picture, unfamiliar_picture
from tests.pipeline.conftest import start_run

PIPELINE = Path(__file__).parents[2] / "pipeline"


@pytest.fixture
def exported(tracked: Path, write_params: Callable[[dict[str, Any]], Params]) -> Params:
    """The workspace after stage export: eight test images, the last four duplicates. The model errs on two of these."""
    params = write_params({"report.bootstrap": 50})
    tiny_model(paths.RELEASE, data_source="synthetic", run_id=start_run(params))
    write_test_images(drawn=[0, 1, 2, 3, 0, 1, 3, 2], labels=[0, 1, 2, 3, 0, 1, 2, 3], seen=[0, 0, 0, 0, 1, 1, 1, 1])
    return params


def write_test_images(drawn: list[int], labels: list[int], seen: list[int]) -> None:
    save_test_images(np.stack([tiny_picture(label) for label in drawn]), labels, seen)


def save_test_images(pixels: np.ndarray, labels: list[int], seen: list[int]) -> None:
    """Write TEST, with a scan for each image, and a POOL without duplicates of them."""
    paths.TEST.parent.mkdir(parents=True, exist_ok=True)
    names = [f"test/{index}.png" for index in range(len(labels))]
    np.savez(
        paths.TEST,
        pixels=pixels,
        labels=np.array(labels),
        seen=np.array(seen, bool),
        scans=np.arange(len(labels)),
        paths=np.array(names),
        **input_facts.to_arrays([plain_facts()] * len(labels)),
    )
    noise = np.random.default_rng(0).integers(0, 255, (3, *pixels.shape[1:]))
    np.savez(paths.POOL, pixels=noise.astype(np.uint8), paths=np.array(["train/a.png", "train/b.png", "valid/c.png"]))


def reported() -> dict[str, Metrics]:
    return Reported.read(paths.TEST_METRICS).metrics


def run_id() -> str:
    return ModelCard.read(paths.RELEASE / CARD).lineage.run_id


def test_figures_are_given_for_all_images_and_for_those_of_new_scans(exported: Params) -> None:
    report(exported)
    metrics = reported()
    assert {name: (each.images, each.accuracy.value) for name, each in metrics.items()} == {
        "test": (8, 0.75),
        "test_new_scans": (4, 1.0),
    }
    assert metrics["test"].confusion[2] == (0, 0, 1, 1)
    assert metrics["test_new_scans"].split == "test folder, images of scans that were not found in train or valid"


def test_if_every_scan_is_known_there_are_no_figures_of_new_ones(exported: Params) -> None:
    write_test_images(drawn=[0, 1, 2, 3], labels=[0, 1, 2, 3], seen=[1, 1, 1, 1])
    report(exported)
    assert set(reported()) == {"test"}


def test_decisions_are_those_of_the_cards_thresholds(exported: Params) -> None:
    close_call = np.maximum(tiny_picture(0), tiny_picture(3))
    pictures = [tiny_picture(0), tiny_picture(1), close_call, unfamiliar_picture()]
    save_test_images(np.stack(pictures), [0, 1, 2, 3], [0, 0, 0, 0])
    report(exported)
    metrics = reported()["test"]
    assert (metrics.referred, metrics.unfamiliar, metrics.rejected) == (0.5, 0.25, 0.0)


def test_a_rule_on_the_input_counts_as_a_rejection(exported: Params) -> None:
    with np.load(paths.TEST) as file:
        arrays = dict(file)
    np.savez(paths.TEST, **{**arrays, "facts_colour": np.array([99.0] * 2 + [0.0] * 6)})
    report(exported)
    assert reported()["test"].rejected == 0.25


def test_intervals_resample_whole_scans(exported: Params) -> None:
    report(exported)
    alone = reported()
    with np.load(paths.TEST) as file:
        arrays = dict(file)
    np.savez(paths.TEST, **{**arrays, "scans": np.array([0, 1, 2, 3, 0, 1, 4, 4])})  # both errors in one
    report(exported)
    together = reported()
    assert {name: (each.images, each.scans) for name, each in alone.items()} == {
        "test": (8, 8),
        "test_new_scans": (4, 4),
    }
    assert (together["test"].scans, together["test_new_scans"].scans) == (5, 4)
    assert together["test"].accuracy.value == alone["test"].accuracy.value
    assert together["test"].accuracy.low < alone["test"].accuracy.low


def copy_of(path: Path, target: Path, mode: str) -> None:
    target.parent.mkdir(exist_ok=True)
    Image.open(path).convert(mode).save(target, quality=95)


@pytest.mark.parametrize(("name", "mode"), [("renamed.png", "RGBA"), ("renamed.png", "L"), ("renamed.jpg", "RGB")])
def test_a_planted_duplicate_that_is_not_marked_ends_the_report_before_there_is_a_figure(
    exported: Params, data_set: Path, capsys: pytest.CaptureFixture[str], name: str, mode: str
) -> None:
    # A JPEG is decoded at a smaller scale. At 32 pixels a side this phantom stays a duplicate; some do not.
    copy_of(sorted(data_set.glob("train/normal/*.png"))[1], data_set / "test/normal" / name, mode)
    data = exported.data.model_copy(update={"source": "local", "path": data_set})
    prepared = exported.prepare.model_copy(update={"image_size": 32, "folds": 2})
    params = exported.model_copy(update={"data": data, "prepare": prepared})
    ingest(params)
    prepare(params)
    with np.load(paths.TEST) as file:
        arrays = dict(file)
    assert arrays["paths"][arrays["seen"]].tolist() == [f"test/normal/{name}"]
    report(params)
    openings = paths.TEST_OPENINGS.read_text(encoding="utf-8")
    paths.TEST_METRICS.unlink()

    np.savez(paths.TEST, **{**arrays, "seen": np.zeros_like(arrays["seen"])})
    with pytest.raises(SystemExit) as caught:
        main()

    assert caught.value.code == 2
    assert (
        f"1 test images are listed as having no duplicate in train or valid, but have one, such as test/normal/{name}"
        in (capsys.readouterr().err)
    )
    assert not paths.TEST_METRICS.exists()
    assert paths.TEST_OPENINGS.read_text(encoding="utf-8") == openings


def test_each_opening_of_the_test_folder_is_counted(exported: Params, capsys: pytest.CaptureFixture[str]) -> None:
    paths.TEST_OPENINGS.parent.mkdir(parents=True, exist_ok=True)
    others = '{"data_digest": "of the images that the project was released with"}\n'
    paths.TEST_OPENINGS.write_text(others, encoding="utf-8")
    report(exported)
    assert "opened 0 times before" in capsys.readouterr().out
    first = paths.TEST_OPENINGS.read_text(encoding="utf-8")
    report(exported)
    assert "opened 1 times before" in capsys.readouterr().out
    both = paths.TEST_OPENINGS.read_text(encoding="utf-8")
    assert both.startswith(first)
    other, *lines = (json.loads(line) for line in both.splitlines())
    assert (other, len(lines)) == (json.loads(others), 2)
    lineage = ModelCard.read(paths.RELEASE / CARD).lineage
    assert (
        lines[0].items()
        >= {
            "run_id": lineage.run_id,
            "model_sha256": lineage.model_sha256,
            "data_source": "synthetic",
            "data_digest": lineage.data_digest,
            "images": 8,
            "images_of_new_scans": 4,
        }.items()
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", lines[0]["opened"])


def test_an_opening_is_counted_even_if_the_report_then_fails(exported: Params) -> None:
    (paths.RELEASE / GRAPH).write_bytes(b"no graph")
    with pytest.raises(RuntimeError):
        report(exported)
    assert len(paths.TEST_OPENINGS.read_text(encoding="utf-8").splitlines()) == 1


def run() -> mlflow.entities.Run:
    return mlflow.MlflowClient(f"sqlite:///{tracking.STORE.resolve()}").get_run(run_id())


def test_the_run_receives_the_figures_as_a_file_and_not_as_metrics(exported: Params, tmp_path: Path) -> None:
    report(exported)
    for path in (paths.TEST_METRICS, paths.TEST_PLOTS / "test" / "confusion.png"):
        assert tracking.fetch(run_id(), str(path), tmp_path).read_bytes() == path.read_bytes()
    assert run().data.metrics == {}, "a table of runs would show them beside what a choice may rest on"
    assert not paths.KEY_FIGURES.exists(), "dvc metrics show"
    assert run().info.status == "RUNNING", "as stage train left it"


def test_plots_of_an_earlier_opening_are_gone(exported: Params) -> None:
    report(exported)
    assert (paths.TEST_PLOTS / "test_new_scans").is_dir()
    write_test_images(drawn=[0, 1, 2, 3], labels=[0, 1, 2, 3], seen=[1, 1, 1, 1])
    report(exported)
    assert [path.name for path in paths.TEST_PLOTS.iterdir()] == ["test"]


def test_without_a_graph_it_ends_in_one_line_and_opens_nothing(
    exported: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(paths.RELEASE)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"report: no {paths.RELEASE / CARD}; `make train` makes the graph that is measured\n"
    )
    assert not paths.TEST_OPENINGS.exists()


def test_nothing_else_opens_the_test_images() -> None:
    """Only prepare writes the test images and only report, which is no stage, reads them."""
    naming = {path.name for path in PIPELINE.rglob("*.py") if re.search(r"paths\.TEST\b", path.read_text("utf-8"))}
    assert naming == {"prepare.py", "report.py"}
    spelled = {path.name for path in PIPELINE.rglob("*.py") if "test.npz" in path.read_text("utf-8")}
    assert spelled <= {"paths.py", "prepare.py", "report.py"}
    assert "np.load(paths.TEST" not in (PIPELINE / "prepare.py").read_text("utf-8")
