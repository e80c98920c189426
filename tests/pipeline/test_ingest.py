"""The stage ingest: files from a folder, an archive or phantoms, each in the manifest."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kagglehub
import pytest

from pipeline import ingest as stage_module
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images.listing import DANGLING, DEEPER
from pipeline.images.manifest import Manifest
from pipeline.ingest import ingest
from tests.server import ROOT

WriteParams = Callable[[dict[str, Any]], Params]
PHANTOMS = {"train": 1, "valid": 1, "test": 1}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_local_folder_is_copied_and_every_file_is_in_the_manifest(write_params: WriteParams, data_set: Path) -> None:
    ingest(write_params({"data.source": "local", "data.path": str(data_set)}))

    assert snapshot(paths.RAW) == snapshot(data_set)
    manifest = Manifest.read()
    assert [file.path for file in manifest.files] == sorted(snapshot(data_set))
    assert str(data_set) not in paths.MANIFEST.read_text(encoding="utf-8")


def test_a_copy_of_kaggles_set_is_taken_from_its_folder_and_stays_kaggles(
    write_params: WriteParams, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> str:
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    ingest(write_params({"data.source": "kaggle", "data.path": str(data_set)}))
    assert snapshot(paths.RAW) == snapshot(data_set)


def test_kaggles_archive_is_found_below_the_folder_that_it_is_unpacked_to(
    write_params: WriteParams, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(kagglehub, "dataset_download", lambda name: asked.append(name) or str(data_set.parent))

    ingest(write_params({"data.source": "kaggle"}))

    assert asked == ["mohamedhanyyy/chest-ctscan-images"]
    assert snapshot(paths.RAW) == snapshot(data_set)


def test_phantoms_are_the_same_for_the_same_seed(write_params: WriteParams) -> None:
    digests = []
    for seed in (1, 1, 2):
        ingest(write_params({"data.source": "synthetic", "data.phantoms": PHANTOMS, "seed": seed}))
        digests.append(Manifest.read().digest)

    assert digests[0] == digests[1] != digests[2]
    assert len(Manifest.read().files) == 12


@pytest.mark.parametrize("content", ["", '{"source": "local"}'])
def test_a_broken_manifest_is_reported_and_written_again(
    write_params: WriteParams, data_set: Path, content: str
) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    whole = Manifest.read()
    paths.MANIFEST.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="is no manifest"):
        Manifest.read()
    ingest(params)
    assert Manifest.read() == whole


def test_the_digest_depends_only_on_the_files(write_params: WriteParams, data_set: Path) -> None:
    ingest(write_params({"data.source": "local", "data.path": str(data_set)}))
    first = Manifest.read()
    moved = data_set.rename(data_set.parent / "elsewhere")
    ingest(write_params({"data.source": "local", "data.path": str(moved)}))
    assert Manifest.read() == first

    image = min(moved.glob("test/normal/*.png"))
    image.unlink()
    shutil.copyfile(min(moved.glob("train/normal/*.png")), image)
    ingest(write_params({"data.source": "local", "data.path": str(moved)}))
    assert Manifest.read().digest != first.digest


def test_unchanged_images_are_left_where_they_are(
    write_params: WriteParams, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    before = paths.RAW.stat().st_ino
    ingest(params)
    assert paths.RAW.stat().st_ino == before
    assert "unchanged" in capsys.readouterr().out


def test_a_changed_copy_is_replaced(write_params: WriteParams, data_set: Path) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    min(paths.RAW.rglob("*.png")).write_bytes(b"spoiled")
    ingest(params)
    assert snapshot(paths.RAW) == snapshot(data_set)


def test_a_file_name_that_is_not_utf8_is_reported_and_written_in_utf8(
    write_params: WriteParams, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = min((data_set / "train" / "normal").glob("*.png"))
    content = image.read_bytes()
    os.rename(image, os.fsencode(image.parent) + b"/gr\xf6\xdfe.png")  # noqa: PTH104 - bytes
    for _ in range(2):
        ingest(write_params({"data.source": "local", "data.path": str(data_set)}))
        assert r"1 renamed, since their names are not UTF-8 ('train/normal/gr\\xf6\\xdfe.png')" in said(capsys)
    assert (paths.RAW / "train" / "normal" / r"gr\xf6\xdfe.png").read_bytes() == content
    assert r"train/normal/gr\xf6\xdfe.png" in [file.path for file in Manifest.read().files]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard output."""
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_entries_that_are_left_out_are_reported_and_change_neither_manifest_nor_images(
    write_params: WriteParams, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    assert said(capsys).endswith(Manifest.read().digest[:12])
    assert json.loads(paths.LEFT_OUT.read_bytes()) == {}
    before = snapshot(Path("data"))
    folder = data_set / "train" / "normal" / "patient 7"
    folder.mkdir()
    shutil.copyfile(min(data_set.glob("test/normal/*.png")), folder / "0.png")
    ingest(params)
    line = said(capsys)
    assert "unchanged; 1 not taken, in a folder below a class folder ('train/normal/patient 7/0.png')" in line
    assert str(paths.LEFT_OUT) in line
    assert json.loads(paths.LEFT_OUT.read_bytes()) == {DEEPER: ["train/normal/patient 7/0.png"]}
    assert snapshot(Path("data")) == before


def test_too_many_left_out_entries_end_the_stage_in_one_line_and_the_old_images_stay(
    write_params: WriteParams, data_set: Path
) -> None:
    params = {"data.source": "local", "data.path": str(data_set)}
    ingest(write_params(params))
    before = snapshot(Path("data"))
    present = len(Manifest.read().files)
    for index in range(3):
        (data_set / "train" / "normal" / f"lost{index}.png").symlink_to("/nonexistent/annex/object")
    with pytest.raises(
        DataError, match=rf"3 of {present + 3} entries .* data\.max_left_out allows \(0\.05\)"
    ) as caught:
        ingest(write_params(params))
    assert "\n" not in str(caught.value)
    assert "'train/normal/lost0.png', 'train/normal/lost1.png', 'train/normal/lost2.png'" in str(caught.value)
    assert json.loads(paths.LEFT_OUT.read_bytes()) == {DANGLING: [f"train/normal/lost{i}.png" for i in range(3)]}
    assert snapshot(Path("data")) == before
    ingest(write_params({**params, "data.max_left_out": 0.5}))
    assert snapshot(Path("data")) == before


def test_a_class_without_images_is_reported_with_the_reasons(write_params: WriteParams, data_set: Path) -> None:
    for path in (data_set / "train" / "normal").iterdir():
        path.unlink()
        path.symlink_to("/nonexistent/annex/object")
    with pytest.raises(DataError, match=r"train: no images of normal; 4 not taken, links to nothing"):
        ingest(write_params({"data.source": "local", "data.path": str(data_set)}))


def remove_class(folder: Path) -> str:
    shutil.rmtree(min(folder.glob("valid/squamous*")))
    return "valid: no images of squamous_cell_carcinoma"


def empty_class(folder: Path) -> str:
    for path in folder.glob("train/normal/*"):
        path.unlink()
    return "train: no images of normal"


def empty_split(folder: Path) -> str:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    return "test: the split is empty"


def remove_split(folder: Path) -> str:
    shutil.rmtree(folder / "valid")
    return "valid: the split is empty"


def add_unknown_class(folder: Path) -> str:
    (folder / "train" / "sarcoma").mkdir()
    return "'train/sarcoma': the folder's name begins with none of"


def remove_all(folder: Path) -> str:
    shutil.rmtree(folder)
    return "no such folder"


def remove_content(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "expected a folder that holds train, valid, test"


@pytest.mark.parametrize(
    "spoil",
    [remove_class, empty_class, empty_split, remove_split, add_unknown_class, remove_all, remove_content],
    ids=lambda spoil: spoil.__name__,
)
def test_a_folder_that_lacks_something_is_named_and_the_old_images_stay(
    write_params: WriteParams, data_set: Path, spoil: Callable[[Path], str]
) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    before = snapshot(Path("data"))
    words = spoil(data_set)

    with pytest.raises(DataError, match=words) as caught:
        ingest(params)

    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert snapshot(Path("data")) == before


def test_an_interrupted_copy_keeps_the_old_images(
    write_params: WriteParams, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    before = snapshot(Path("data"))
    min(data_set.glob("test/normal/*.png")).unlink()
    shutil.copyfile(min(data_set.glob("train/normal/*.png")), data_set / "test" / "normal" / "new.png")
    copied = []

    def copy_two(source: Path, target: Path) -> None:
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        copied.append(target.write_bytes(source.read_bytes()))

    monkeypatch.setattr(stage_module.shutil, "copyfile", copy_two)
    with pytest.raises(DataError, match="No space left"):
        ingest(params)

    assert len(copied) == 2
    assert snapshot(Path("data")) == before


def test_local_without_a_path_says_how_to_name_it(write_params: WriteParams) -> None:
    with pytest.raises(DataError, match="make train DATA=folder"):
        ingest(write_params({"data.source": "local", "data.path": None}))


def test_without_kaggle_one_line_names_the_three_ways_out(write_params: WriteParams, workspace: Path) -> None:
    """The real kagglehub, behind a proxy that refuses every connection."""
    write_params({"data.source": "kaggle"})
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # bound, but not listening
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HTTPS_PROXY": f"http://127.0.0.1:{refusing.getsockname()[1]}",
            "NO_PROXY": "",
            "no_proxy": "",
            "KAGGLEHUB_CACHE": str(workspace.parent / "cache"),
        }
        run = subprocess.run(
            [sys.executable, "-m", "pipeline.ingest"], env=environment, capture_output=True, text=True, timeout=300
        )

    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "Kaggle" in line
    assert "make train DATA=folder" in line
    assert "make demo" in line
    assert not Path("data").exists()


def test_a_stalled_download_ends_the_stage(
    write_params: WriteParams, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real kagglehub would wait forever for a proxy that accepts and never answers."""
    monkeypatch.setattr(stage_module, "STALL_SECONDS", 0.3)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(workspace.parent / "cache"))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DataError, match="Kaggle sent nothing"):
            ingest(write_params({"data.source": "kaggle"}))
    assert not Path("data").exists()


def test_the_manifest_is_the_same_bytes_on_every_run(write_params: WriteParams, data_set: Path) -> None:
    params = write_params({"data.source": "local", "data.path": str(data_set)})
    ingest(params)
    first = paths.MANIFEST.read_bytes()
    shutil.rmtree("data")
    ingest(params)
    assert paths.MANIFEST.read_bytes() == first
    assert set(json.loads(first)) == {"digest", "files"}
