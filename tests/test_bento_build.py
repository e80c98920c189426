"""`bentoml build` where `make serve` has installed what it needs and nothing else, and the bento that comes of it."""

import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest

import chestct
from chestct.image import encode_png
from tests.graphs import tiny_picture
from tests.server import ROOT, Server, environment, import_tiny_model, serve

REQUIREMENTS = ROOT / "requirements/serving.txt"
PNG = encode_png(tiny_picture(1)[:, :, 0])


@pytest.fixture
def serving_alone(tmp_path: Path) -> Path:
    """The programs of an environment with the serving set alone: neither uv nor pip, as `make serve` leaves it."""
    folder = tmp_path / "serving"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    for name in re.findall(r"^([\w.-]+)==", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE):
        for package in metadata.distributions(name=name):
            for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin"


def ask(server: Server) -> Any:
    answer = httpx.post(f"{server.url}/v1/predict", files={"image": PNG}, timeout=300).raise_for_status().json()
    return answer["label"], answer["probabilities"]


def test_the_serving_set_alone_builds_a_bento_that_holds_the_model_and_answers_as_the_service_does(
    server: Server, serving_alone: Path, tmp_path: Path
) -> None:
    home = tmp_path / "bentoml"
    tag = import_tiny_model(home)
    built = subprocess.run(
        [serving_alone / "python", "-m", "bentoml", "build", "--output", "tag"],
        cwd=ROOT,
        env=environment(home, PATH=str(serving_alone)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    bento = built.stdout.split()[-1].removeprefix("__tag__:")
    assert import_tiny_model(home, run_id="newer") != tag

    folder = home / "bentos" / bento.replace(":", "/")
    sources = {path.relative_to(folder / "src").parts[0] for path in (folder / "src").rglob("*") if path.is_file()}
    assert sources == {"bentofile.yaml", "service.py", "archive", "chestct", "serving"}
    assert (folder / "env/python/requirements.txt").read_text() == REQUIREMENTS.read_text(), "pinned, with hashes"
    dockerfile = (folder / "env/docker/Dockerfile").read_text()
    assert dockerfile.count("apt-get update") == 1

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with serve(home, tag, what=bento, cwd=elsewhere, CHESTCT_WORKERS="1") as packed:
        assert httpx.get(f"{packed.url}/v1/model", timeout=300).json()["model"] == tag
        assert httpx.get(f"{packed.url}/v2", timeout=300).json()["version"] == chestct.__version__
        assert ask(packed) == ask(server)
