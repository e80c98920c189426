"""Fixtures of the pipeline's tests: a project folder, phantoms in it, and their prepared arrays."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.core import paths, tracking
from pipeline.core.params import Params, PhantomCounts
from pipeline.images.extra import read_extra
from pipeline.images.phantoms import draw_phantoms
from pipeline.ingest import ingest
from pipeline.prepare import prepare
from tests.pipeline.prepared import SIZE, Prepared
from tests.server import ROOT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, which is the test's current directory."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def write_params(workspace: Path) -> Callable[[dict[str, Any]], Params]:
    """Writes the project's params.yaml into the workspace, with each `section.key` changed."""

    def write(changes: dict[str, Any]) -> Params:
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for key, value in changes.items():
            *sections, last = key.split(".")
            section = content
            for name in sections:
                section = section[name]
            section[last] = value
        (workspace / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return Params.read(workspace / "params.yaml")

    return write


def small_params(**changes: object) -> Params:
    """The project's parameters for the small network on 64 pixels; `train__epochs=2` changes `train.epochs`."""
    small = {"prepare.image_size": 64, "base_model.backbone": "small", "base_model.weights": "none"}
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return Params.read(ROOT / "params.yaml").changed(small | changed)


def write_pool(pixels: NDArray[np.uint8], labels: NDArray[np.int64], folds: NDArray[np.int64]) -> None:
    """Write POOL and an empty EXTRA, as stage prepare does. `pixels` uint8 [N, S, S, 1] are also the sources."""
    count, side = pixels.shape[:2]
    paths.POOL.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        paths.POOL,
        pixels=pixels,
        sources=pixels[:, :, :, 0],
        source_sizes=np.full((count, 2), side),
        labels=labels,
        folds=folds,
        scans=np.arange(count),
        sha256=np.array([f"{index:064x}" for index in range(count)]),
    )
    np.savez(paths.EXTRA, **read_extra(()))


def start_run(
    params: Params,
    *,
    data_source: str = "synthetic",
    data_digest: str = "ab" * 32,
    image_count: int = 8,
) -> str:
    """Open a run from the commit c0ffee as stage train does. Return its id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "git_commit", lambda: "c0ffee")
        return tracking.start_run(params, data_source=data_source, data_digest=data_digest, image_count=image_count)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in Kaggle's layout. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_phantoms(folder, PhantomCounts(train=4, valid=2, test=1), seed=11)
    return folder


@pytest.fixture
def data_set(drawn: Path, tmp_path: Path) -> Path:
    """A copy of `drawn` that the test may change, with class folders spelled as on Kaggle."""
    spelled = {
        "adenocarcinoma": "adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib",
        "large_cell_carcinoma": "large.cell.carcinoma_left.hilum_T2_N2_M0_IIIa",
        "normal": "normal",
        "squamous_cell_carcinoma": "squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa",
    }
    copy = tmp_path / "Data"
    for path in drawn.rglob("*.png"):
        split, name, file = path.relative_to(drawn).parts
        folder = name.replace("_", ".") if split == "test" else spelled[name]
        target = copy / split / folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return copy


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs. Tests copy it, because making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / tracking.STORE
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert tracking.best_run("none", 1) is None
    return path


@pytest.fixture
def tracked(workspace: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace with a local MLflow store."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    shutil.copyfile(new_store, workspace / tracking.STORE)
    return workspace


@pytest.fixture
def run_prepare(write_params: Callable[[dict[str, Any]], Params], data_set: Path) -> Callable[..., Prepared]:
    """Ingests `data_set` and prepares it."""

    def ingest_and_prepare(**changes: object) -> Prepared:
        params = write_params(
            {
                "data.source": "local",
                "data.path": str(data_set),
                "prepare.image_size": SIZE,
                "prepare.folds": 2,
                **{f"prepare.{key}": value for key, value in changes.items()},
            }
        )
        ingest(params)
        prepare(params)
        return Prepared()

    return ingest_and_prepare
