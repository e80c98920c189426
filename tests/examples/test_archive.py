"""The examples for other engines give the rows of the command. Spark runs if it is installed."""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow
import pyarrow.parquet
import pytest

from archive import models
from chestct.card import DISCLAIMER
from chestct.image import encode_png
from chestct.store import GRAPH
from examples import ray_archive, spark_archive
from tests.graphs import tiny_model, tiny_picture
from tests.server import ROOT

SPARK = ROOT / ".venv-spark" / "bin" / "python"


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model(tmp_path / "model")
    assert (tmp_path / "model" / GRAPH).exists()
    return str(tmp_path / "model")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir()
    for label in range(4):
        (tmp_path / "in" / f"{label}.png").write_bytes(encode_png(tiny_picture(label)[:, :, 0]))
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    return sorted(str(path) for path in (tmp_path / "in").iterdir())


def outcomes(table: pyarrow.Table) -> dict[str, str]:
    return {Path(row["file"]).name: row["label"] or row["error"] for row in table.to_pylist()}


def expected(model: str) -> dict[str, str]:
    labels = {f"{label}.png": name for label, name in enumerate(models.find(model).card.classes)}
    return {**labels, "broken.png": "undecodable_image"}


@pytest.mark.parametrize("example", [ray_archive, spark_archive])
def test_what_has_hashes_is_installed_alone(example: ModuleType) -> None:
    """Otherwise pip wants a hash for everything."""
    lines = [line for line in str(example.__doc__).splitlines() if "requirements/" in line]
    assert [line.endswith("/bin/pip install -r requirements/serving.txt") for line in lines] == [True]


def test_the_function_for_spark_turns_paths_into_rows(model: str, files: list[str]) -> None:
    batches = spark_archive.score(iter([pyarrow.record_batch({"file": files})]), model)
    table = pyarrow.Table.from_batches(batches)
    assert outcomes(table) == expected(model)
    names = [column.split()[0] for column in spark_archive.columns(model).split(", ")]
    assert names == table.column_names
    assert {column.split()[1] for column in spark_archive.columns(model).split(", ")} == {"string", "double"}


def test_the_actor_for_ray_turns_paths_into_rows(model: str, files: list[str]) -> None:
    actor = ray_archive.Score(model)
    assert outcomes(actor(pyarrow.table({"file": files}))) == expected(model)
    assert actor(pyarrow.table({"file": files[:0]})).num_rows == 0


@pytest.mark.skipif(not SPARK.exists(), reason="no .venv-spark here; examples/spark_archive.py says how to make it")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here (Debian: apt-get install default-jre-headless)")
def test_spark_runs_the_example(model: str, files: list[str], tmp_path: Path) -> None:
    call = [str(SPARK), str(ROOT / "examples/spark_archive.py"), str(tmp_path / "in"), str(tmp_path / "out"), model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(DISCLAIMER)
    table = pyarrow.parquet.read_table(tmp_path / "out")
    assert outcomes(table) == expected(model)
    assert Counter(table.column("file").to_pylist()) == Counter(files)
