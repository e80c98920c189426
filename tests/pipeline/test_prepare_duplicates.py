"""Duplicates, near duplicates and look-alikes: what prepare drops, marks and keeps together."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.core import paths
from pipeline.images.classes import CLASSES
from tests.pipeline.prepared import (
    ADENOCARCINOMA,
    LARGE_CELL,
    NORMAL,
    SQUAMOUS,
    Prepared,
    first,
    folder_of,
    in_other_bytes,
    noisy,
    path_of,
)


def test_one_of_the_exact_duplicates_in_train_and_valid_is_kept(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", NORMAL)
    copies = [
        folder_of(data_set, "train", NORMAL) / "6 - Copy (2) - Copy.png",
        folder_of(data_set, "valid", NORMAL) / "other bytes.png",
    ]
    shutil.copyfile(original, copies[0])
    copies[1].write_bytes(in_other_bytes(original))

    prepared = run_prepare()

    assert len(prepared.pool["paths"]) == 24
    kept = [path_of(data_set, path) for path in (original, *copies)]
    assert prepared.audit["copies"] == [kept]
    assert sum(path in kept for path in prepared.pool["paths"]) == 1


def test_one_picture_with_two_labels_is_left_out(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "train", LARGE_CELL)
    other = folder_of(data_set, "valid", SQUAMOUS) / "sq2.png"
    other.write_bytes(in_other_bytes(original))

    prepared = run_prepare()

    both = [path_of(data_set, original), path_of(data_set, other)]
    assert prepared.audit["conflicts"] == [both]
    assert not set(both) & set(prepared.pool["paths"])
    assert len(prepared.pool["paths"]) == 23


def test_duplicates_in_test_are_marked_and_never_dropped(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "valid", NORMAL)
    duplicates = [folder_of(data_set, "test", NORMAL) / name for name in ("same.png", "same - Copy.png")]
    for duplicate in duplicates:
        duplicate.write_bytes(in_other_bytes(original))

    prepared = run_prepare()

    marked = prepared.test["paths"][prepared.test["seen"]]
    assert sorted(marked) == sorted(path_of(data_set, duplicate) for duplicate in duplicates)
    assert len(prepared.test["paths"]) == 6
    assert prepared.audit["twins_per_class"]["normal"] == 2
    assert set(prepared.audit["twins"].values()) == {path_of(data_set, original)}


def test_a_duplicate_of_a_label_conflict_is_marked_in_test(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", LARGE_CELL)
    shutil.copyfile(original, folder_of(data_set, "train", SQUAMOUS) / "sq2.png")
    shutil.copyfile(original, folder_of(data_set, "test", LARGE_CELL) / "l4.png")

    prepared = run_prepare()

    assert prepared.test["paths"][prepared.test["seen"]].tolist() == ["test/large.cell.carcinoma/l4.png"]


ENCODINGS: dict[str, Callable[[Image.Image, Path], None]] = {
    "poor JPEG": lambda image, path: image.convert("RGB").save(path.with_suffix(".jpg"), quality=20),
    "palette": lambda image, path: (
        image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(path)
    ),
    "half size": lambda image, path: image.convert("L").resize((image.width // 2, image.height // 2)).save(path),
    "stretched": lambda image, path: image.convert("L").resize((image.width, image.width)).save(path),
    "darker": lambda image, path: ImageEnhance.Brightness(image.convert("L")).enhance(0.7).save(path),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_training_image_that_is_encoded_again_in_test_is_a_near_duplicate(
    run_prepare: Callable[..., Prepared], data_set: Path, encoding: str
) -> None:
    original = folder_of(data_set, "train", SQUAMOUS) / "0001.png"  # its body is found alike in all encodings
    ENCODINGS[encoding](Image.open(original), folder_of(data_set, "test", LARGE_CELL) / "renamed.png")

    prepared = run_prepare()

    (planted,) = data_set.glob("test/large*/renamed.*")
    pair = [path_of(data_set, planted), path_of(data_set, original)]
    assert prepared.test["paths"][prepared.test["seen"]].tolist() == pair[:1]
    assert [found["paths"] for found in prepared.audit["near_twins"]] == [pair]
    assert prepared.audit["twins_with_another_label"] == [pair]
    assert prepared.audit["duplicate_pairs"]["near"]["train test"]["several"] == 1
    assert len(prepared.pool["paths"]) == 24


def test_a_test_image_of_a_scan_in_train_is_marked_though_it_is_no_duplicate(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", NORMAL)
    noisy(Image.open(original), 0.3).save(folder_of(data_set, "test", NORMAL) / "like.png")

    prepared = run_prepare()

    assert prepared.test["paths"][prepared.test["seen"]].tolist() == ["test/normal/like.png"]
    assert prepared.audit["test_of_known_scans"] == dict.fromkeys(CLASSES, 0) | {"normal": 1}
    assert len(prepared.audit["test_of_new_scans"]) == 4
    assert not prepared.audit["near_twins"]


def test_near_duplicates_in_train_and_valid_are_listed_once_and_kept_in_one_scan(
    run_prepare: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", NORMAL)
    other = folder_of(data_set, "valid", LARGE_CELL) / "other.jpg"
    Image.open(original).convert("L").save(other, quality=50)
    shutil.copyfile(other, other.with_name("other again.jpg"))

    prepared = run_prepare()

    pair = [path_of(data_set, original), path_of(data_set, other.with_name("other again.jpg"))]
    assert [found["paths"] for found in prepared.audit["near_duplicates"]] == [pair]
    assert prepared.audit["near_conflicts"] == [pair]
    assert prepared.audit["duplicate_pairs"]["near"]["train valid"]["several"] == 2
    assert prepared.audit["duplicate_pairs"]["exact"]["valid valid"]["large_cell_carcinoma"] == 1
    assert prepared.audit["scans"]["with_several_classes"] == [pair]


def test_the_contact_sheet_shows_what_was_found(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    run_prepare()
    with Image.open(paths.CONTACT_SHEET) as clean:
        assert (clean.format, clean.mode) == ("PNG", "L")
        height = clean.height
    shutil.copyfile(first(data_set, "train", NORMAL), folder_of(data_set, "test", NORMAL) / "same.png")
    run_prepare()
    with Image.open(paths.CONTACT_SHEET) as found:
        assert found.height > height


def test_look_alikes_are_one_scan_and_stay_in_one_fold(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    original = Image.open(first(data_set, "train", ADENOCARCINOMA)).convert("L")
    near = []
    for index, factor in enumerate((0.9, 0.95, 1.05)):
        near.append(folder_of(data_set, "valid", ADENOCARCINOMA) / f"near {index}.png")
        ImageEnhance.Brightness(original).enhance(factor).save(near[-1])

    pool = run_prepare().pool

    group = np.isin(pool["paths"], [path_of(data_set, path) for path in near])
    group |= pool["paths"] == path_of(data_set, first(data_set, "train", ADENOCARCINOMA))
    assert group.sum() == 4
    assert len(np.unique(pool["scans"][group])) == 1
    assert len(np.unique(pool["folds"][group])) == 1


def test_look_alikes_in_test_are_one_scan_too(run_prepare: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "test", NORMAL)
    planted = original.with_name("brighter.png")
    ImageEnhance.Brightness(Image.open(original).convert("L")).enhance(1.05).save(planted)

    test = run_prepare().test

    pair = np.isin(test["paths"], [path_of(data_set, path) for path in (original, planted)])
    assert pair.sum() == 2
    assert len(np.unique(test["scans"][pair])) == 1
    assert len(np.unique(test["scans"])) == 4, "one a class"
