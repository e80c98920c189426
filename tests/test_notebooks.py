"""Checks that the notebooks are thin and show phantoms, and runs them on phantoms."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from chestct.card import DISCLAIMER
from docs.notebooks import DIGEST, digest_of
from tests.server import ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
OWN_FUNCTIONS = {
    "01_data_ingestion": {"ingest", "prepare"},
    "02_prepare_base_model": {"build", "features_of"},
    "03_model_training": {"augment", "freeze", "class_weights", "fit_fold"},
    "04_model_evaluation": {"evaluate"},
}
PICTURES = {"01_data_ingestion": 4, "02_prepare_base_model": 2, "03_model_training": 3, "04_model_evaluation": 6}


def cells(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def code_of(path: Path) -> list[ast.AST]:
    """Return every node in the syntax trees of the code cells."""
    sources = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
    return [node for source in sources for node in ast.walk(ast.parse(source))]


def execute(project: Path, names: list[str], scratch: Path) -> dict[str, int]:
    """Run notebooks of `project` in parallel. Return how many pictures each shows.

    The notebooks do not change. `scratch` receives the executed copies and Jupyter's settings.
    """
    settings = {
        name: str(scratch / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    }
    # On a busy machine a kernel takes long to start.
    command = [str(Path(sys.executable).with_name("jupyter-execute")), "--startup_timeout=300"]
    started = {
        name: subprocess.Popen(
            [*command, f"--output={scratch / name}", str(project / "notebooks" / f"{name}.ipynb")],
            env={**os.environ, **settings, "PYTHONWARNINGS": "default"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in names
    }
    written = {name: process.communicate()[0] for name, process in started.items()}
    shown = {}
    for name, process in started.items():
        assert process.returncode == 0, f"{name}: {written[name][-4000:]}"
        outputs = [each for cell in cells(scratch / f"{name}.ipynb") for each in cell.get("outputs", [])]
        shown[name] = sum("image/png" in each.get("data", {}) for each in outputs)
    return shown


def test_every_notebook_is_there() -> None:
    assert NOTEBOOKS.keys() == OWN_FUNCTIONS.keys()


@pytest.mark.parametrize(("name", "pictures"), PICTURES.items())
def test_a_notebook_shows_what_was_stored_on_phantoms_and_nothing_else(name: str, pictures: int) -> None:
    notebook = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    assert notebook["metadata"][DIGEST] == digest_of(notebook), "run `make demo`, then `python -m docs.notebooks`"
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [cell for cell in notebook["cells"] if cell.get("attachments")]
    assert NOTEBOOKS[name].stat().st_size < 400_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_the_disclaimer(name: str) -> None:
    assert DISCLAIMER in "".join(cells(NOTEBOOKS[name])[0]["source"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_calls_its_stages_functions_and_defines_none(name: str) -> None:
    nodes = code_of(NOTEBOOKS[name])
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    from_pipeline = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.")
        for alias in node.names
    }
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert OWN_FUNCTIONS[name] <= from_pipeline & called


def test_the_notebooks_call_functions_as_they_are_defined(tmp_path: Path) -> None:
    for name, path in NOTEBOOKS.items():
        code = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
        code.insert(0, "from IPython.display import display")  # Jupyter brings it
        (tmp_path / f"notebook_{name}.py").write_text("\n".join(code), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--allow-untyped-calls", *map(str, tmp_path.glob("*.py"))]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.long
def test_data_ingestion_runs_in_an_empty_project_on_phantoms(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("chestct", "pipeline", "notebooks"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"].update(source="synthetic", path=None, phantoms={"train": 6, "valid": 2, "test": 2})
    params["prepare"].update(image_size=48, folds=2)
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (name,) = (name for name, functions in OWN_FUNCTIONS.items() if "ingest" in functions)
    assert execute(project, [name], tmp_path)[name] == 4, "samples, folds, shortcuts, contact sheet"
