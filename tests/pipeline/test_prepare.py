"""The stage prepare: which images are kept, left out or reported, and what the arrays hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from chestct.card import InputSpec
from chestct.digests import sha256_of
from chestct.image import decode
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.images.manifest import Manifest
from pipeline.images.scans import Curated
from pipeline.prepare import main, prepare
from tests.pipeline.prepared import (
    LARGE_CELL,
    NORMAL,
    SIZE,
    SQUAMOUS,
    Prepared,
    first,
    folder_of,
    other_phantom,
    path_of,
)


def test_a_data_set_without_faults_is_kept_whole(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    prepared = run_prepare()

    pool, test = prepared.pool, prepared.test
    assert pool["pixels"].shape == (24, SIZE, SIZE, 1)
    assert test["pixels"].shape == (4, SIZE, SIZE, 1)
    assert pool["pixels"].dtype == test["pixels"].dtype == np.uint8
    for name in ("labels", "folds", "scans"):
        assert pool[name].dtype == np.int64
        assert pool[name].shape == (24,)
    assert np.bincount(pool["labels"]).tolist() == [6, 6, 6, 6]
    assert set(pool["folds"]) == {0, 1}
    assert not test["seen"].any()
    shas = {file.path: file.sha256 for file in Manifest.read().files}
    for arrays in (pool, test):
        assert [shas[path] for path in arrays["paths"]] == arrays["sha256"].tolist()
    clean = {
        "unreadable",
        "copies",
        "conflicts",
        "twins",
        "misnamed",
        "near_twins",
        "near_duplicates",
        "near_conflicts",
    }
    clean |= {"twins_with_another_label", "without_lung"}
    assert not any(prepared.audit[name] for name in clean)


def test_the_arrays_hold_what_the_service_would_decode(run_prepare: Callable[..., Prepared]) -> None:
    pool = run_prepare().pool
    for path, pixels in zip(pool["paths"], pool["pixels"], strict=True):
        served = decode((paths.RAW / path).read_bytes(), InputSpec(height=SIZE, width=SIZE))
        assert np.array_equal(served.pixels, pixels)


def test_the_beginning_of_a_folder_gives_the_class_in_every_split(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    prepared = run_prepare()
    for label in range(4):
        for part in ("train", "valid"):
            assert prepared.label(path_of(data_set, first(data_set, part, label))) == label
    folders = [path.split("/")[1].replace(".", "_") for path in prepared.test["paths"]]
    assert [CLASSES[label] for label in prepared.test["labels"]] == folders


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "P", "LA", "1"])
def test_every_mode_of_png_is_read(run_prepare: Callable[..., Prepared], data_set: Path, mode: str) -> None:
    path = folder_of(data_set, "train", NORMAL) / "mode.png"
    other_phantom().convert(mode).save(path)

    prepared = run_prepare()

    assert prepared.label(path_of(data_set, path)) == NORMAL
    assert prepared.audit["formats"][f"PNG {mode}"] >= 1


def test_a_jpeg_named_png_is_read_and_named(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    path = folder_of(data_set, "train", NORMAL) / "n7.png"
    other_phantom().save(path, "JPEG")

    prepared = run_prepare()

    assert prepared.audit["misnamed"] == [path_of(data_set, path)]
    assert prepared.audit["formats"]["JPEG L"] == 1
    assert prepared.label(path_of(data_set, path)) == NORMAL


@pytest.mark.parametrize("content", [b"", b"notes", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_picture_is_listed_and_skipped(
    run_prepare: Callable[..., Prepared], data_set: Path, content: bytes
) -> None:
    path = folder_of(data_set, "train", NORMAL) / "unreadable.png"
    path.write_bytes(content)

    prepared = run_prepare()

    assert list(prepared.audit["unreadable"]) == [path_of(data_set, path)]
    assert len(prepared.pool["paths"]) == 24


def test_a_truncated_picture_is_listed_and_skipped(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    path = first(data_set, "test", SQUAMOUS).with_name("truncated.png")
    whole = first(data_set, "test", SQUAMOUS).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    prepared = run_prepare()

    assert list(prepared.audit["unreadable"]) == [path_of(data_set, path)]
    assert len(prepared.test["paths"]) == 4


def test_too_many_unreadable_pictures_end_it_in_one_line_that_names_them(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    paths_below = [folder_of(data_set, "train", label) / "pointer.png" for label in range(4)]
    for path in paths_below:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"4 of 32 images can't be read, .* data\.max_left_out") as caught:
        run_prepare()
    assert "\n" not in str(caught.value)
    assert all(repr(path_of(data_set, path)) in str(caught.value) for path in paths_below)


def test_scans_and_folds_are_the_same_at_every_size_of_the_input(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    whole = Image.open(first(data_set, "train", SQUAMOUS)).convert("L")
    fine = np.asarray(whole).astype(np.int64)
    fine += np.random.default_rng(0).integers(-200, 201, fine.shape)
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder_of(data_set, "train", SQUAMOUS) / "noisy.png")
    # At 32 pixels the two correlate by 0.997, at 96 by 0.986.
    coarse, finer = (
        run_prepare(image_size=size, scan_correlation=0.99, duplicate_correlation=0.99) for size in (32, 96)
    )
    for name in ("scans", "folds", "paths"):
        assert np.array_equal(coarse.pool[name], finer.pool[name])


def test_a_class_with_fewer_images_than_folds_is_named(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    for path in sorted(data_set.glob("*/squamous*/*")):
        if path.parts[-3] == "train" and path.name != "0000.png":
            path.unlink()
    with pytest.raises(DataError, match="squamous_cell_carcinoma 3") as caught:
        run_prepare(folds=4)
    assert caught.value.exit_code == 2
    assert not paths.POOL.exists()


def test_a_class_that_is_one_scan_is_named(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    original = Image.open(first(data_set, "train", NORMAL)).convert("L")
    images = sorted(data_set.glob("train/normal/*")) + sorted(data_set.glob("valid/normal/*"))
    for index, path in enumerate(images):
        path.unlink()
        ImageEnhance.Brightness(original).enhance(0.9 + index / 50).save(path)
    with pytest.raises(DataError, match="normal: its images are of 1 scans and reach 1 of 2 folds"):
        run_prepare()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert not paths.POOL.exists()


def test_images_of_a_single_class_are_refused_with_an_exit_code(
    run_prepare: Callable[..., Prepared], data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data_set.glob("*/*/*"):
        if "normal" not in path.parts:
            path.write_bytes(b"broken")
    with pytest.raises(DataError):
        run_prepare()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "adenocarcinoma 0, large_cell_carcinoma 0, squamous_cell_carcinoma 0" in message
    assert not paths.POOL.exists()


def test_a_test_class_without_a_readable_image_is_named(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    path = first(data_set, "test", NORMAL)
    path.unlink()
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="test: normal 0"):
        run_prepare()


def test_raw_files_that_differ_from_the_manifest_are_refused(run_prepare: Callable[..., Prepared]) -> None:
    run_prepare()
    path = min(paths.RAW.rglob("*.png"))
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match="ingest"):
        prepare(Params.read())
    path.unlink()
    with pytest.raises(DataError, match="ingest"):
        prepare(Params.read())


def test_without_a_manifest_it_says_what_to_run(write_params: Callable[[dict[str, Any]], Params]) -> None:
    with pytest.raises(DataError, match="dvc repro"):
        prepare(write_params({}))


def test_the_audit_counts_and_probes_for_shortcuts(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    for part in ("train", "valid"):
        for path in folder_of(data_set, part, NORMAL).iterdir():
            image = Image.open(path).convert("RGB").resize((900, 700))
            path.unlink()
            image.save(path)

    audit = run_prepare().audit

    assert audit["images"]["train"] == dict.fromkeys(CLASSES, 4)
    assert audit["images"]["test"] == dict.fromkeys(CLASSES, 1)
    assert audit["pool"] == dict.fromkeys(CLASSES, 6)
    assert sum(sum(fold.values()) for fold in audit["folds"].values()) == 24
    assert sum(audit["formats"].values()) == 28
    assert audit["width"]["most"] == 900
    assert audit["scans"]["number"] == 24
    shortcuts = audit["shortcuts"]
    assert shortcuts["majority_class"] == {
        "four_classes": 0.25,
        "four_classes_balanced": 0.25,
        "normal_or_cancer": 0.75,
        "normal_or_cancer_balanced": 0.5,
    }
    assert shortcuts["file_geometry"]["normal_or_cancer_balanced"] > 0.9
    assert shortcuts["input_mean_grey"]["four_classes"] < 0.7


def test_a_frame_around_a_class_is_a_shortcut_in_the_files_but_not_in_the_standard_pictures(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    for part in ("train", "valid"):
        for path in folder_of(data_set, part, NORMAL).iterdir():
            image = Image.open(path).convert("L")
            inside = image.resize((image.width - 16, image.height - 16))
            image.paste(255, (0, 0, *image.size))
            image.paste(inside, (8, 8))
            image.save(path)

    shortcuts = run_prepare().audit["shortcuts"]

    assert shortcuts["file_frame"]["normal_or_cancer_balanced"] > 0.9
    assert shortcuts["input_frame"]["normal_or_cancer_balanced"] < 0.7


def test_slices_without_lung_leave_train_and_valid_and_stay_in_test(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    abdomen = np.full((120, 160), 5, np.uint8)
    rows, columns = np.mgrid[:120, :160]
    abdomen[((rows - 60) / 50) ** 2 + ((columns - 80) / 70) ** 2 < 1] = 120
    abdomen[55:60, 60:66] = 10  # gas
    planted = [folder_of(data_set, part, LARGE_CELL) / "abdomen.png" for part in ("valid", "test")]
    for path in planted:
        Image.fromarray(abdomen).save(path)

    prepared = run_prepare()

    listed = prepared.audit["without_lung"]
    assert sorted(listed) == sorted(path_of(data_set, path) for path in planted)
    assert all(share < 0.013 for share in listed.values())
    assert len(prepared.pool["paths"]) == 24
    assert path_of(data_set, planted[1]) in prepared.test["paths"]
    assert prepared.test["seen"].sum() == 1


def test_training_gets_the_pictures_as_they_came(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    wide = folder_of(data_set, "train", NORMAL) / "wide.png"
    other_phantom().resize((800, 500)).save(wide)

    pool = run_prepare().pool

    assert pool["sources"].shape == (25, 384, 384)
    assert pool["sources"].dtype == np.uint8
    sizes = dict(zip(pool["paths"].tolist(), pool["source_sizes"].tolist(), strict=True))
    assert sizes[path_of(data_set, wide)] == [384, 240]
    for path, source in zip(pool["paths"], pool["sources"], strict=True):
        with Image.open(paths.RAW / path) as image:
            grey = np.asarray(image.convert("L"))
        width, height = sizes[path]
        if max(grey.shape) <= 384:
            assert (height, width) == grey.shape
            assert np.array_equal(source[:height, :width], grey)
        assert not source[height:].any()
        assert not source[:, width:].any()


def test_files_that_a_person_has_grouped_stay_in_one_fold(
    run_prepare: Callable[..., Prepared], data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(folder_of(data_set, "train", NORMAL).iterdir())[:3]
    digests = {sha256_of(path): "s001" for path in files}
    grouped = Curated.read().model_copy(update={"scans": digests, "without_lung": {sha256_of(files[0])}})
    monkeypatch.setattr(Curated, "read", lambda: grouped)

    prepared = run_prepare()

    pool = prepared.pool
    kept = np.isin(pool["paths"], [path_of(data_set, path) for path in files])
    assert kept.sum() == 2
    assert len(np.unique(pool["scans"][kept])) == len(np.unique(pool["folds"][kept])) == 1
    assert list(prepared.audit["without_lung"]) == [path_of(data_set, files[0])]
    assert prepared.audit["scans"]["number"] == 22


def test_two_runs_write_the_same_bytes(run_prepare: Callable[..., Prepared]) -> None:
    written = []
    for _ in range(2):
        run_prepare()
        files = (paths.POOL, paths.TEST, paths.AUDIT, paths.CONTACT_SHEET)
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
