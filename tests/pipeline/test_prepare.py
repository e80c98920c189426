import json
import shutil
from collections.abc import Callable
from io import BytesIO
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
from pipeline.images.phantoms import draw_phantom
from pipeline.images.scans import Curated
from pipeline.ingest import ingest
from pipeline.prepare import main, prepare

ADENOCARCINOMA, LARGE_CELL, NORMAL, SQUAMOUS = range(4)
SIZE = 64


class Prepared:
    """The files that prepare wrote."""

    def __init__(self) -> None:
        with np.load(paths.POOL) as pool:
            self.pool = dict(pool)
        with np.load(paths.TEST) as test:
            self.test = dict(test)
        self.audit = json.loads(paths.AUDIT.read_text(encoding="utf-8"))

    def label(self, path: str) -> int:
        (index,) = np.flatnonzero(self.pool["paths"] == path)
        return int(self.pool["labels"][index])


@pytest.fixture
def run(write_params: Callable[[dict[str, Any]], Params], data_set: Path) -> Callable[..., Prepared]:
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


def folder_of(data_set: Path, part: str, label: int) -> Path:
    return next(data_set.glob(f"{part}/{CLASSES[label].split('_')[0]}*"))


def path_of(data_set: Path, path: Path) -> str:
    return path.relative_to(data_set).as_posix()


def first(data_set: Path, part: str, label: int) -> Path:
    return sorted(folder_of(data_set, part, label).iterdir())[0]


def in_other_bytes(path: Path) -> bytes:
    """The same pixels in a file of other bytes, as RGBA."""
    buffer = BytesIO()
    Image.open(path).convert("RGBA").save(buffer, "PNG", compress_level=9)
    assert buffer.getvalue() != path.read_bytes()
    return buffer.getvalue()


def other_phantom() -> Image.Image:
    """A slice, in mode L, that is not in the data set."""
    return draw_phantom(NORMAL, np.random.default_rng(5)).convert("L")


def noisy(image: Image.Image, share: float) -> Image.Image:
    """The picture with coarse noise, in multiples of its own standard deviation."""
    grey = np.asarray(image.convert("L"), np.float32)
    noise = np.random.default_rng(0).normal(0, share * grey.std(), (16, 16))
    fine = np.asarray(Image.fromarray(noise).resize(grey.shape[::-1]))
    return Image.fromarray((grey + fine).clip(0, 255).astype(np.uint8))


def test_a_data_set_without_faults_is_kept_whole(run: Callable[..., Prepared], data_set: Path) -> None:
    prepared = run()

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


def test_the_arrays_hold_what_the_service_would_decode(run: Callable[..., Prepared]) -> None:
    pool = run().pool
    for path, pixels in zip(pool["paths"], pool["pixels"], strict=True):
        served = decode((paths.RAW / path).read_bytes(), InputSpec(height=SIZE, width=SIZE))
        assert np.array_equal(served.pixels, pixels)


def test_the_beginning_of_a_folder_gives_the_class_in_every_split(run: Callable[..., Prepared], data_set: Path) -> None:
    prepared = run()
    for label in range(4):
        for part in ("train", "valid"):
            assert prepared.label(path_of(data_set, first(data_set, part, label))) == label
    folders = [path.split("/")[1].replace(".", "_") for path in prepared.test["paths"]]
    assert [CLASSES[label] for label in prepared.test["labels"]] == folders


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "P", "LA", "1"])
def test_every_mode_of_png_is_read(run: Callable[..., Prepared], data_set: Path, mode: str) -> None:
    path = folder_of(data_set, "train", NORMAL) / "mode.png"
    other_phantom().convert(mode).save(path)

    prepared = run()

    assert prepared.label(path_of(data_set, path)) == NORMAL
    assert prepared.audit["formats"][f"PNG {mode}"] >= 1


def test_a_jpeg_named_png_is_read_and_named(run: Callable[..., Prepared], data_set: Path) -> None:
    path = folder_of(data_set, "train", NORMAL) / "n7.png"
    other_phantom().save(path, "JPEG")

    prepared = run()

    assert prepared.audit["misnamed"] == [path_of(data_set, path)]
    assert prepared.audit["formats"]["JPEG L"] == 1
    assert prepared.label(path_of(data_set, path)) == NORMAL


def test_one_of_the_exact_duplicates_in_train_and_valid_is_kept(run: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "train", NORMAL)
    copies = [
        folder_of(data_set, "train", NORMAL) / "6 - Copy (2) - Copy.png",
        folder_of(data_set, "valid", NORMAL) / "other bytes.png",
    ]
    shutil.copyfile(original, copies[0])
    copies[1].write_bytes(in_other_bytes(original))

    prepared = run()

    assert len(prepared.pool["paths"]) == 24
    kept = [path_of(data_set, path) for path in (original, *copies)]
    assert prepared.audit["copies"] == [kept]
    assert sum(path in kept for path in prepared.pool["paths"]) == 1


def test_one_picture_with_two_labels_is_left_out(run: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "train", LARGE_CELL)
    other = folder_of(data_set, "valid", SQUAMOUS) / "sq2.png"
    other.write_bytes(in_other_bytes(original))

    prepared = run()

    both = [path_of(data_set, original), path_of(data_set, other)]
    assert prepared.audit["conflicts"] == [both]
    assert not set(both) & set(prepared.pool["paths"])
    assert len(prepared.pool["paths"]) == 23


@pytest.mark.parametrize("content", [b"", b"notes", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_picture_is_listed_and_skipped(
    run: Callable[..., Prepared], data_set: Path, content: bytes
) -> None:
    path = folder_of(data_set, "train", NORMAL) / "unreadable.png"
    path.write_bytes(content)

    prepared = run()

    assert list(prepared.audit["unreadable"]) == [path_of(data_set, path)]
    assert len(prepared.pool["paths"]) == 24


def test_a_truncated_picture_is_listed_and_skipped(run: Callable[..., Prepared], data_set: Path) -> None:
    path = first(data_set, "test", SQUAMOUS).with_name("truncated.png")
    whole = first(data_set, "test", SQUAMOUS).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    prepared = run()

    assert list(prepared.audit["unreadable"]) == [path_of(data_set, path)]
    assert len(prepared.test["paths"]) == 4


def test_too_many_unreadable_pictures_end_it_in_one_line_that_names_them(
    run: Callable[..., Prepared], data_set: Path
) -> None:
    paths_below = [folder_of(data_set, "train", label) / "pointer.png" for label in range(4)]
    for path in paths_below:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"4 of 32 images can't be read, .* data\.max_left_out") as caught:
        run()
    assert "\n" not in str(caught.value)
    assert all(repr(path_of(data_set, path)) in str(caught.value) for path in paths_below)


def test_duplicates_in_test_are_marked_and_never_dropped(run: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "valid", NORMAL)
    duplicates = [folder_of(data_set, "test", NORMAL) / name for name in ("same.png", "same - Copy.png")]
    for duplicate in duplicates:
        duplicate.write_bytes(in_other_bytes(original))

    prepared = run()

    marked = prepared.test["paths"][prepared.test["seen"]]
    assert sorted(marked) == sorted(path_of(data_set, duplicate) for duplicate in duplicates)
    assert len(prepared.test["paths"]) == 6
    assert prepared.audit["twins_per_class"]["normal"] == 2
    assert set(prepared.audit["twins"].values()) == {path_of(data_set, original)}


def test_a_duplicate_of_a_label_conflict_is_marked_in_test(run: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "train", LARGE_CELL)
    shutil.copyfile(original, folder_of(data_set, "train", SQUAMOUS) / "sq2.png")
    shutil.copyfile(original, folder_of(data_set, "test", LARGE_CELL) / "l4.png")

    prepared = run()

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
    run: Callable[..., Prepared], data_set: Path, encoding: str
) -> None:
    original = folder_of(data_set, "train", SQUAMOUS) / "0001.png"  # its body is found alike in all encodings
    ENCODINGS[encoding](Image.open(original), folder_of(data_set, "test", LARGE_CELL) / "renamed.png")

    prepared = run()

    (planted,) = data_set.glob("test/large*/renamed.*")
    pair = [path_of(data_set, planted), path_of(data_set, original)]
    assert prepared.test["paths"][prepared.test["seen"]].tolist() == pair[:1]
    assert [found["paths"] for found in prepared.audit["near_twins"]] == [pair]
    assert prepared.audit["twins_with_another_label"] == [pair]
    assert prepared.audit["duplicate_pairs"]["near"]["train test"]["several"] == 1
    assert len(prepared.pool["paths"]) == 24


def test_a_test_image_of_a_scan_in_train_is_marked_though_it_is_no_duplicate(
    run: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", NORMAL)
    noisy(Image.open(original), 0.3).save(folder_of(data_set, "test", NORMAL) / "like.png")

    prepared = run()

    assert prepared.test["paths"][prepared.test["seen"]].tolist() == ["test/normal/like.png"]
    assert prepared.audit["test_of_known_scans"] == dict.fromkeys(CLASSES, 0) | {"normal": 1}
    assert len(prepared.audit["test_of_new_scans"]) == 4
    assert not prepared.audit["near_twins"]


def test_near_duplicates_in_train_and_valid_are_listed_once_and_kept_in_one_scan(
    run: Callable[..., Prepared], data_set: Path
) -> None:
    original = first(data_set, "train", NORMAL)
    other = folder_of(data_set, "valid", LARGE_CELL) / "other.jpg"
    Image.open(original).convert("L").save(other, quality=50)
    shutil.copyfile(other, other.with_name("other again.jpg"))

    prepared = run()

    pair = [path_of(data_set, original), path_of(data_set, other.with_name("other again.jpg"))]
    assert [found["paths"] for found in prepared.audit["near_duplicates"]] == [pair]
    assert prepared.audit["near_conflicts"] == [pair]
    assert prepared.audit["duplicate_pairs"]["near"]["train valid"]["several"] == 2
    assert prepared.audit["duplicate_pairs"]["exact"]["valid valid"]["large_cell_carcinoma"] == 1
    assert prepared.audit["scans"]["with_several_classes"] == [pair]


def test_the_contact_sheet_shows_what_was_found(run: Callable[..., Prepared], data_set: Path) -> None:
    run()
    with Image.open(paths.CONTACT_SHEET) as clean:
        assert (clean.format, clean.mode) == ("PNG", "L")
        height = clean.height
    shutil.copyfile(first(data_set, "train", NORMAL), folder_of(data_set, "test", NORMAL) / "same.png")
    run()
    with Image.open(paths.CONTACT_SHEET) as found:
        assert found.height > height


def test_look_alikes_are_one_scan_and_stay_in_one_fold(run: Callable[..., Prepared], data_set: Path) -> None:
    original = Image.open(first(data_set, "train", ADENOCARCINOMA)).convert("L")
    near = []
    for index, factor in enumerate((0.9, 0.95, 1.05)):
        near.append(folder_of(data_set, "valid", ADENOCARCINOMA) / f"near {index}.png")
        ImageEnhance.Brightness(original).enhance(factor).save(near[-1])

    pool = run().pool

    group = np.isin(pool["paths"], [path_of(data_set, path) for path in near])
    group |= pool["paths"] == path_of(data_set, first(data_set, "train", ADENOCARCINOMA))
    assert group.sum() == 4
    assert len(np.unique(pool["scans"][group])) == 1
    assert len(np.unique(pool["folds"][group])) == 1


def test_look_alikes_in_test_are_one_scan_too(run: Callable[..., Prepared], data_set: Path) -> None:
    original = first(data_set, "test", NORMAL)
    planted = original.with_name("brighter.png")
    ImageEnhance.Brightness(Image.open(original).convert("L")).enhance(1.05).save(planted)

    test = run().test

    pair = np.isin(test["paths"], [path_of(data_set, path) for path in (original, planted)])
    assert pair.sum() == 2
    assert len(np.unique(test["scans"][pair])) == 1
    assert len(np.unique(test["scans"])) == 4, "one a class"


def test_scans_and_folds_are_the_same_at_every_size_of_the_input(run: Callable[..., Prepared], data_set: Path) -> None:
    whole = Image.open(first(data_set, "train", SQUAMOUS)).convert("L")
    fine = np.asarray(whole).astype(np.int64)
    fine += np.random.default_rng(0).integers(-200, 201, fine.shape)
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder_of(data_set, "train", SQUAMOUS) / "noisy.png")
    # At 32 pixels the two correlate by 0.997, at 96 by 0.986.
    coarse, finer = (run(image_size=size, scan_correlation=0.99, duplicate_correlation=0.99) for size in (32, 96))
    for name in ("scans", "folds", "paths"):
        assert np.array_equal(coarse.pool[name], finer.pool[name])


def test_a_class_with_fewer_images_than_folds_is_named(run: Callable[..., Prepared], data_set: Path) -> None:
    for path in sorted(data_set.glob("*/squamous*/*")):
        if path.parts[-3] == "train" and path.name != "0000.png":
            path.unlink()
    with pytest.raises(DataError, match="squamous_cell_carcinoma 3") as caught:
        run(folds=4)
    assert caught.value.exit_code == 2
    assert not paths.POOL.exists()


def test_a_class_that_is_one_scan_is_named(run: Callable[..., Prepared], data_set: Path) -> None:
    original = Image.open(first(data_set, "train", NORMAL)).convert("L")
    images = sorted(data_set.glob("train/normal/*")) + sorted(data_set.glob("valid/normal/*"))
    for index, path in enumerate(images):
        path.unlink()
        ImageEnhance.Brightness(original).enhance(0.9 + index / 50).save(path)
    with pytest.raises(DataError, match="normal: its images are of 1 scans and reach 1 of 2 folds"):
        run()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert not paths.POOL.exists()


def test_images_of_a_single_class_are_refused_with_an_exit_code(
    run: Callable[..., Prepared], data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in data_set.glob("*/*/*"):
        if "normal" not in path.parts:
            path.write_bytes(b"broken")
    with pytest.raises(DataError):
        run()
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "adenocarcinoma 0, large_cell_carcinoma 0, squamous_cell_carcinoma 0" in message
    assert not paths.POOL.exists()


def test_a_test_class_without_a_readable_image_is_named(run: Callable[..., Prepared], data_set: Path) -> None:
    path = first(data_set, "test", NORMAL)
    path.unlink()
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="test: normal 0"):
        run()


def test_raw_files_that_differ_from_the_manifest_are_refused(run: Callable[..., Prepared]) -> None:
    run()
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


def test_the_audit_counts_and_probes_for_shortcuts(run: Callable[..., Prepared], data_set: Path) -> None:
    for part in ("train", "valid"):
        for path in folder_of(data_set, part, NORMAL).iterdir():
            image = Image.open(path).convert("RGB").resize((900, 700))
            path.unlink()
            image.save(path)

    audit = run().audit

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
    run: Callable[..., Prepared], data_set: Path
) -> None:
    for part in ("train", "valid"):
        for path in folder_of(data_set, part, NORMAL).iterdir():
            image = Image.open(path).convert("L")
            inside = image.resize((image.width - 16, image.height - 16))
            image.paste(255, (0, 0, *image.size))
            image.paste(inside, (8, 8))
            image.save(path)

    shortcuts = run().audit["shortcuts"]

    assert shortcuts["file_frame"]["normal_or_cancer_balanced"] > 0.9
    assert shortcuts["input_frame"]["normal_or_cancer_balanced"] < 0.7


def test_slices_without_lung_leave_train_and_valid_and_stay_in_test(
    run: Callable[..., Prepared], data_set: Path
) -> None:
    abdomen = np.full((120, 160), 5, np.uint8)
    rows, columns = np.mgrid[:120, :160]
    abdomen[((rows - 60) / 50) ** 2 + ((columns - 80) / 70) ** 2 < 1] = 120
    abdomen[55:60, 60:66] = 10  # gas
    planted = [folder_of(data_set, part, LARGE_CELL) / "abdomen.png" for part in ("valid", "test")]
    for path in planted:
        Image.fromarray(abdomen).save(path)

    prepared = run()

    listed = prepared.audit["without_lung"]
    assert sorted(listed) == sorted(path_of(data_set, path) for path in planted)
    assert all(share < 0.013 for share in listed.values())
    assert len(prepared.pool["paths"]) == 24
    assert path_of(data_set, planted[1]) in prepared.test["paths"]
    assert prepared.test["seen"].sum() == 1


def test_training_gets_the_pictures_as_they_came(run: Callable[..., Prepared], data_set: Path) -> None:
    wide = folder_of(data_set, "train", NORMAL) / "wide.png"
    other_phantom().resize((800, 500)).save(wide)

    pool = run().pool

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
    run: Callable[..., Prepared], data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(folder_of(data_set, "train", NORMAL).iterdir())[:3]
    digests = {sha256_of(path): "s001" for path in files}
    grouped = Curated.read().model_copy(update={"scans": digests, "without_lung": {sha256_of(files[0])}})
    monkeypatch.setattr(Curated, "read", lambda: grouped)

    prepared = run()

    pool = prepared.pool
    kept = np.isin(pool["paths"], [path_of(data_set, path) for path in files])
    assert kept.sum() == 2
    assert len(np.unique(pool["scans"][kept])) == len(np.unique(pool["folds"][kept])) == 1
    assert list(prepared.audit["without_lung"]) == [path_of(data_set, files[0])]
    assert prepared.audit["scans"]["number"] == 22


def test_two_runs_write_the_same_bytes(run: Callable[..., Prepared]) -> None:
    written = []
    for _ in range(2):
        run()
        files = (paths.POOL, paths.TEST, paths.AUDIT, paths.CONTACT_SHEET)
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
