"""The whole way on phantoms: DVC runs every stage, the model is stored, and the real server answers with it."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from open_inference.grpc import protocol, service

from chestct.card import InputSpec, ModelCard
from chestct.image import decode
from pipeline.core import paths, source
from pipeline.images.classes import CLASSES
from pipeline.judging.calibration import Calibration
from tests.server import ROOT, Server, environment, serve
from tests.test_dvc import STAGES, modules_loaded
from tests.test_notebooks import execute

IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "chestct"), ("EMAIL", "chestct@localhost"))
}


class Project(NamedTuple):
    folder: Path
    """A clone of the working tree in which every stage has run."""
    home: Path
    """Folder of BentoML's stores."""

    @property
    def records(self) -> Path:
        """Folder in which tests/recorder lists the modules that each stage loaded."""
        return self.home.with_name("records")

    def run(self, *command: str) -> str:
        """Run a command in the folder, as a user without a git name. Return what it printed."""
        inherited = environment(self.home, **IDENTITY, GIT_CONFIG_GLOBAL=os.devnull)
        inherited |= {"PYTHONPATH": str(ROOT / "tests" / "recorder"), "RECORD_MODULES": str(self.records)}
        done = subprocess.run(
            command, cwd=self.folder, env=inherited, capture_output=True, text=True, timeout=6000, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def phantom_settings() -> list[str]:
    """Return the Makefile's PHANTOMS as arguments of `dvc exp run`."""
    database = subprocess.run(
        ["make", "--print-data-base", "--dry-run", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"^PHANTOMS = (.+)$", database, re.MULTILINE)
    assert found
    return [word for setting in found[1].split() for word in ("-S", setting)]


def clone_project(folder: Path) -> Project:
    """Commit a copy of the working tree in `folder`, with an empty BentoML store beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("release/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    made = Project(folder, folder.with_name("bentoml"))
    made.home.mkdir()
    made.records.mkdir()
    made.run("git", "init", "--quiet")
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "Take the project")
    return made


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = clone_project(tmp_path_factory.mktemp("project") / "clone")
    made.run("dvc", "exp", "run", *phantom_settings())
    return made


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Server]:
    tag = project.run("python", "-m", "pipeline.store").splitlines()[-1]
    with serve(project.home, tag, cwd=project.folder, CHESTCT_MODEL=tag, CHESTCT_WORKERS="1") as running:
        yield running


@pytest.fixture(scope="module")
def phantoms(project: Project) -> list[bytes]:
    """Held-out pictures, two of each class."""
    test = project.folder / paths.RAW / "test"
    return [path.read_bytes() for name in CLASSES for path in sorted((test / name).iterdir())[:2]]


def ask(server: Server, image: bytes) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/predict", content=image, headers={"Content-Type": "image/png"}, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("name", STAGES)
def test_the_code_of_a_stage_is_exactly_what_it_loads(project: Project, name: str) -> None:
    assert set(source.modules_of(name)) == modules_loaded(project.records, name)


def test_the_contact_sheet_is_kept_by_dvc_and_by_mlflow_and_never_by_git(project: Project) -> None:
    sheet = (project.folder / paths.CONTACT_SHEET).read_bytes()
    assert [path.read_bytes() for path in (project.folder / "mlartifacts").rglob(paths.CONTACT_SHEET.name)] == [sheet]
    assert f"path: {paths.CONTACT_SHEET.parent}\n" in (project.folder / "dvc.lock").read_text(encoding="utf-8")
    assert project.run("git", "check-ignore", str(paths.CONTACT_SHEET)).strip() == str(paths.CONTACT_SHEET)


def test_the_metrics_are_a_table_that_a_terminal_can_show(project: Project) -> None:
    head, *rows = project.run("dvc", "metrics", "show").splitlines()
    figures = ["accepted", "accuracy", "calibration_error", "cancer_auc", "macro_f1", "style_kept", "style_wrong"]
    assert head.split() == ["Path", *figures]
    assert [row.split()[0] for row in rows] == [str(paths.KEY_FIGURES)]
    assert max(map(len, [head, *rows])) <= 120


def test_the_experiments_are_a_table_of_120_columns_that_names_what_was_changed(project: Project) -> None:
    lines = project.run("python", "-m", "pipeline.experiments").splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split()[:4] == ["experiment", "created", "cancer", "AUC"]
    assert "train.epochs=14" in " ".join(lines), "the Makefile's PHANTOMS change it"


def test_the_plots_show_each_networks_loss_on_training_and_held_out_images(project: Project) -> None:
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.folder / "plots" / "index.html").read_text(encoding="utf-8")
    for word in ("Loss by epoch", "held-out images", "fold_1", "fold_2", "Out-of-fold confusion"):
        assert word in page
    assert page.count("vegaEmbed(") == 2, "and no line chart of the confusion's rows"


def test_the_pipeline_leaves_the_test_folder_closed_until_it_is_opened_on_purpose(project: Project) -> None:
    openings = (ROOT / paths.TEST_OPENINGS).read_bytes()
    assert not (project.folder / paths.TEST_METRICS).exists()
    assert (project.folder / paths.TEST_OPENINGS).read_bytes() == openings
    project.run("python", "-m", "pipeline.report")
    metrics = json.loads((project.folder / paths.TEST_METRICS).read_bytes())["metrics"]
    assert metrics["test"]["images"] >= 80
    assert metrics["test"]["accuracy"]["value"] >= 0.80, "a small network tells held-out phantoms apart"
    assert len((project.folder / paths.TEST_OPENINGS).read_bytes().splitlines()) == len(openings.splitlines()) + 1
    for command in (("metrics", "show"), ("exp", "show", "--csv")):
        shown = project.run("dvc", *command)
        assert "macro_f1" in shown
        assert "test_new_scans" not in shown
        assert not re.search(r"\btest\b.*0\.\d", shown)


def test_heat_maps_point_at_what_changes_the_answer_and_depend_on_the_head(project: Project) -> None:
    figures = json.loads((project.folder / paths.OUT_OF_FOLD_METRICS).read_bytes())
    assert figures["occlusion_agrees"] >= 0.8
    assert figures["heatmap_like_random_head"] < 0.5


def test_pictures_that_are_not_chest_ct_are_mostly_rejected(project: Project) -> None:
    others = json.loads((project.folder / paths.OUT_OF_FOLD_CARD).read_bytes())["others"]
    assert {"photographs", "text", "noise", "inverted_ct", "screenshots_of_ct"} <= others.keys()
    for kind in ("photographs", "text", "screenshots_of_ct"):
        assert others[kind]["rejected"] >= 0.9, kind


def test_the_stored_model_answers_over_http_and_says_that_it_is_synthetic(
    server: Server, phantoms: list[bytes]
) -> None:
    for image in phantoms:
        answer = ask(server, image)
        assert answer["model"] == server.tag
        assert answer["warnings"] == ["synthetic_model"]
        assert set(answer["probabilities"]) == set(CLASSES)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        best = max(answer["probabilities"], key=answer["probabilities"].__getitem__)
        assert answer["label"] == (None if answer["decision"] == "reject" else best)


def test_the_card_of_a_phantom_model_does_not_name_kaggle(project: Project) -> None:
    card = ModelCard.read(project.folder / paths.RELEASE / "card.json")
    assert "phantoms" in card.licence
    assert "Kaggle" not in card.licence + "".join(card.caveats)


def test_grpc_gives_the_same_answer_as_http(server: Server, phantoms: list[bytes]) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service.GRPCInferenceServiceStub(channel)
        for image in phantoms:
            request = protocol.ModelInferRequest(
                model_name="chestct",
                inputs=[{"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [image]}}],
            )
            response = stub.ModelInfer(request, timeout=300)
            names = [output.name for output in response.outputs]
            raw = response.raw_output_contents[names.index("probabilities")]
            expected = list(ask(server, image)["probabilities"].values())
            np.testing.assert_allclose(np.frombuffer(raw, np.float32), expected, atol=1e-5)


def test_the_service_predicts_what_the_trained_network_does(
    project: Project, server: Server, phantoms: list[bytes]
) -> None:
    import keras  # loads TensorFlow for this test only

    network = keras.models.load_model(project.folder / paths.FINAL_MODEL, compile=False)
    _, height, width, _ = network.input_shape
    spec = InputSpec(height=height, width=width)
    pixels = np.stack([decode(image, spec).pixels for image in phantoms])
    scaling = Calibration.read(project.folder / paths.CALIBRATION).scaling
    logits = scaling.apply(np.asarray(network.predict(pixels, verbose=0)))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    served = [list(ask(server, image)["probabilities"].values()) for image in phantoms]
    np.testing.assert_allclose(served, expected, atol=2e-3)  # the graph's weights are float16


def test_the_notebooks_show_what_the_stages_made(project: Project, tmp_path: Path) -> None:
    names = ["02_prepare_base_model", "03_model_training", "04_model_evaluation"]
    shown = execute(project.folder, names, tmp_path)
    assert shown["02_prepare_base_model"] == 2, "features, feature maps"
    assert shown["03_model_training"] == 3, "augmentation, one fold, the last run"
    pictures = list((project.folder / paths.OUT_OF_FOLD_PLOTS).glob("*.png"))
    assert shown["04_model_evaluation"] == len(pictures) + 1, "and the worst errors"


def test_a_second_run_does_nothing_and_stores_nothing(project: Project, server: Server) -> None:
    output = project.run("dvc", "repro")
    assert re.findall(r"Running stage '(\w+)'", output) == ["code", "ingest"]
    assert project.run("python", "-m", "pipeline.store").splitlines()[-1] == server.tag


def test_a_changed_number_of_epochs_runs_train_and_no_stage_before_it(project: Project) -> None:
    params = project.folder / paths.PARAMS
    before = params.read_text(encoding="utf-8")
    params.write_text(before.replace("epochs: 14", "epochs: 13"), encoding="utf-8")
    try:
        output = project.run("dvc", "repro", "--dry")
    finally:
        params.write_text(before, encoding="utf-8")
    assert re.findall(r"Running stage '(\w+)'", output) == ["code", "ingest", "train"]


def test_a_fresh_clone_pulls_the_model_from_a_remote(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--default", "shelf", str(tmp_path / "remote"))
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Train on phantoms")
    project.run("dvc", "push", "--quiet")
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    Project(tmp_path / "clone", project.home).run("dvc", "pull", "--quiet")
    for name in ("model.onnx", "card.json"):
        pulled = tmp_path / "clone" / paths.RELEASE / name
        assert pulled.read_bytes() == (project.folder / paths.RELEASE / name).read_bytes()
