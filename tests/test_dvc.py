"""Compares dvc.yaml with the code, and checks which changes make a stage run again."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import code
from pipeline.core.params import Params, PhantomCounts
from pipeline.images.phantoms import draw_phantoms
from tests.server import ROOT

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


class Project:
    """A git repository with the project's code, and a local folder with a few phantoms."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.images = folder / "images"
        draw_phantoms(self.images, PhantomCounts(train=2, valid=1, test=1), seed=1)
        for name in ("chestct", "pipeline", ".dvc"):
            ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
            shutil.copytree(ROOT / name, self.folder / name, ignore=ignored)
        for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
            shutil.copyfile(ROOT / name, self.folder / name)
        subprocess.run(["git", "init", "-q"], cwd=self.folder, check=True)
        self.set_params(source="local", path=str(self.images), phantoms={"train": 2, "valid": 1, "test": 1})

    def set_params(self, **data: object) -> None:
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        content["data"].update(data)
        content["prepare"].update(image_size=32, folds=2)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def repro(self, *stages: str) -> list[str]:
        """Run `dvc repro`. Return the stages that ran."""
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", "repro", *stages]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"Running stage '(\w+)'", done.stdout)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("dvc"))
    assert made.repro("prepare") == ["code", "ingest", "prepare"]
    return made


def test_a_changed_comment_or_docstring_makes_no_stage_run_again(project: Project) -> None:
    for path in ("pipeline/core/params.py", "pipeline/images/scans.py", "chestct/image.py"):
        file = project.folder / path
        text = file.read_text(encoding="utf-8")
        file.write_text(f"# A comment.\n{text}\n\n\ndef _new() -> None: ...\n" if "core" in path else f"# New.\n{text}")
    assert project.repro("prepare") == ["code", "ingest"]


def test_code_that_computes_something_else_makes_prepare_run_again(project: Project) -> None:
    file = project.folder / "pipeline" / "images" / "folds.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}\nASIDE = 1\n", encoding="utf-8")
    assert project.repro("prepare") == ["code", "ingest", "prepare"]
    file.write_text(text, encoding="utf-8")
    assert project.repro("prepare") == ["code", "ingest"], "DVC takes the first result from its run cache"


def test_one_changed_file_makes_prepare_run_again(project: Project) -> None:
    image = min(project.images.glob("train/normal/*.png"))
    other = min(project.images.glob("test/normal/*.png")).read_bytes()
    image.write_bytes(other)
    assert project.repro("prepare") == ["code", "ingest", "prepare"]
    assert (project.folder / "data" / "raw" / image.relative_to(project.images)).read_bytes() == other


def test_the_same_files_from_another_source_are_the_same_data(project: Project) -> None:
    copy = project.images.with_name("copy")
    shutil.copytree(project.images, copy)
    before = (project.folder / "data" / "manifest.json").read_bytes()
    pool = (project.folder / "data" / "prepared" / "pool.npz").read_bytes()
    project.set_params(source="kaggle", path=str(copy), phantoms={"train": 2, "valid": 1, "test": 1})
    project.repro("prepare")
    assert (project.folder / "data" / "manifest.json").read_bytes() == before
    assert (project.folder / "data" / "prepared" / "pool.npz").read_bytes() == pool


def test_another_source_makes_prepare_run_again(project: Project) -> None:
    project.set_params(source="synthetic", phantoms={"train": 2, "valid": 1, "test": 1})
    assert project.repro("prepare") == ["code", "ingest", "prepare"]


def test_train_depends_only_on_what_it_learns_from() -> None:
    """A new plot or audit of the data set does not cost hours of training."""
    assert set(STAGES["train"]["deps"]) == {
        "data/code/train.txt",
        "data/manifest.json",
        "data/prepared/extra.npz",
        "data/prepared/pool.npz",
        "models/base.keras",
        "models/features.npz",
    }


def test_no_stage_opens_the_test_folder_and_dvc_has_no_figure_of_it() -> None:
    test_images = "data/prepared/test.npz"
    assert "report" not in STAGES
    assert [name for name, stage in STAGES.items() if test_images in stage.get("deps", [])] == []
    assert [name for name, stage in STAGES.items() if test_images in stage.get("outs", [])] == ["prepare"]
    metrics = [path for stage in STAGES.values() for each in stage.get("metrics", []) for path in each]
    assert metrics == ["reports/figures.json"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_module_function_and_params_share_its_name(name: str) -> None:
    assert STAGES[name]["cmd"] == f"python -m pipeline.{name}"
    module = ast.parse((ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8"))
    assert {name, "main"} <= {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    section = "data" if name == "ingest" else name
    assert (
        (section in STAGES[name].get("params", []))
        == (section in Params.model_fields)
        == (name not in ("code", "record"))
    )


def test_the_lock_in_git_is_of_the_training_whose_figures_are_in_git() -> None:
    """So `dvc metrics diff` and `dvc exp show` compare with that training."""
    locked = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert locked.keys() == STAGES.keys()
    digests = {out["path"]: out["md5"] for stage in locked.values() for out in stage.get("outs", [])}
    figures = (ROOT / "reports/figures.json").read_bytes()
    assert digests["reports/figures.json"] == hashlib.md5(figures, usedforsecurity=False).hexdigest()


def test_the_lock_in_git_names_no_folder_of_one_machine() -> None:
    assert not re.search(r"[ \"'](/|~|[A-Z]:)", (ROOT / "dvc.lock").read_text(encoding="utf-8"))


def test_each_stage_depends_on_its_own_code() -> None:
    assert STAGES["code"]["outs"] == [f"data/code/{name}.txt" for name in code.STAGES]
    assert set(code.STAGES) == STAGES.keys() - {"code"}
    for name in code.STAGES:
        (own,) = (path for path in STAGES[name]["deps"] if path.startswith("data/code/"))
        assert own == f"data/code/{name}.txt"


def modules_loaded(records: Path, name: str) -> set[str]:
    """Return what tests/recorder wrote, without __init__ files, because a new version is no reason to train."""
    loaded = (records / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {path for path in loaded if not path.endswith("__init__.py")}
