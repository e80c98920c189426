"""Three classes of one's own, from params.yaml to the answers of the real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from chestct.card import ModelCard
from pipeline.core import paths
from pipeline.core.params import PhantomCounts
from pipeline.images.phantoms import draw_phantoms
from tests.server import Server, serve
from tests.test_end_to_end import Project, ask, clone_project, phantom_settings

OWN = {"cavity": "squamous_cell_carcinoma", "clear": "normal", "nodule": "adenocarcinoma"}
"""The classes, each with the phantoms that show it."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of phantoms in class folders with names of one's own."""
    drawn, folder = (tmp_path_factory.mktemp(name) for name in ("drawn", "images"))
    draw_phantoms(drawn, PhantomCounts(train=120, valid=20, test=20), seed=3)
    for split in ("train", "valid", "test"):
        for own, phantom in OWN.items():
            shutil.move(drawn / split / phantom, folder / split / f"{own}.2026")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Project:
    made = clone_project(tmp_path_factory.mktemp("project") / "clone")
    params = made.folder / paths.PARAMS
    content = yaml.safe_load(params.read_text(encoding="utf-8"))
    content["classes"] = {"names": list(OWN), "normal": "clear", "titles": {"clear": "Nothing found"}}
    params.write_text(yaml.safe_dump(content), encoding="utf-8")
    source = ("-S", "data.source=local", "-S", f"data.path={images}", "-S", "store.min_style_kept=0")
    made.run("dvc", "exp", "run", *phantom_settings(), *source)
    return made


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Server]:
    tag = project.run("python", "-m", "pipeline.store").splitlines()[-1]
    with serve(project.home, tag, cwd=project.folder, CHESTCT_MODEL=tag, CHESTCT_WORKERS="1") as running:
        yield running


def test_the_card_has_the_classes_and_which_of_them_is_normal(project: Project) -> None:
    card = ModelCard.read(project.folder / paths.RELEASE / "card.json")
    assert (card.classes, card.normal) == (("cavity", "clear", "nodule"), "clear")
    assert card.titles == {"cavity": "Cavity", "clear": "Nothing found", "nodule": "Nodule"}
    found = card.metrics["out_of_fold"]
    assert len(found.confusion) == 3
    assert found.cancer_auc.value >= 0.8, "a small network tells phantoms with a lesion from those without"


def test_the_service_answers_with_these_classes_and_the_page_learns_them_from_it(server: Server, images: Path) -> None:
    described = httpx.get(f"{server.url}/v1/model", timeout=300).json()
    assert (described["classes"], described["normal"]) == (["cavity", "clear", "nodule"], "clear")
    labels = set()
    for own in OWN:
        for path in sorted((images / "test" / f"{own}.2026").iterdir())[:4]:
            answer = ask(server, path.read_bytes())
            assert list(answer["probabilities"]) == list(OWN)
            assert set(answer["prediction_set"]) <= set(OWN)
            labels.add(answer["label"])
    assert labels >= {"clear"}, "the class that is normal is answered too"
    assert labels & {"cavity", "nodule"}


def test_the_champion_of_these_runs_is_stored_again_on_another_machine(server: Server, project: Project) -> None:
    assert project.run("python", "-m", "pipeline.store", "--champion").splitlines()[-1] == server.tag
