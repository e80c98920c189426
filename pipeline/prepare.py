"""Audit the images, collapse copies, group look-alikes, make folds, and decode once to the arrays the model learns."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from chestct.card import InputSpec
from chestct.image import InvalidImage, decode
from pipeline import paths, stage
from pipeline.classes import CLASSES, NORMAL, label_of
from pipeline.errors import DataError
from pipeline.manifest import ImageFile, Manifest
from pipeline.params import Params

THUMBNAIL: Final = 64
"""Side of the pictures that are correlated, in pixels."""

_SUFFIXES: Final = {"PNG": {".png"}, "JPEG": {".jpg", ".jpeg"}}


class Slice(NamedTuple):
    """A readable image of the data set."""

    file: ImageFile
    label: int
    pixels: NDArray[np.uint8]
    """[size, size, 1], the model's input."""
    width: int
    height: int
    mode: str
    """Pillow's, of the file: RGBA, RGB, L, P ..."""
    format: str

    @property
    def identity(self) -> bytes:
        """Equal for files that are the same picture to the model, whatever their bytes and modes."""
        return self.pixels.tobytes()


class Sorted(NamedTuple):
    """The slices by what becomes of them."""

    pool: list[Slice]
    """Train and valid: one of each picture, none with two labels."""
    test: list[Slice]
    copies: list[list[str]]
    """Paths in train and valid that show one picture, the kept one first."""
    conflicts: list[list[str]]
    """Paths in train and valid that show one picture under several labels; all left out."""
    twins: dict[str, str]
    """Path in test -> a path in train or valid that shows the same picture."""


def prepare(params: Params) -> None:
    """data/raw to pool.npz (train and valid, with folds), test.npz and audit.json.

    Raises DataError where data/raw is not what the manifest says, or a class has too few images for the folds.
    """
    manifest = Manifest.read()
    size = params.prepare.image_size
    slices, unreadable = _read(manifest, InputSpec(height=size, width=size))
    sorted_slices = _sort(slices)
    pool, test = sorted_slices.pool, sorted_slices.test
    folds_wanted = params.prepare.folds
    _require(pool, folds_wanted, f"train and valid; prepare.folds {folds_wanted} needs one for each fold")
    _require(test, 1, "test")

    labels = np.array([item.label for item in pool])
    clusters = cluster(np.stack([item.pixels for item in pool]), params.prepare.cluster_correlation)
    folds = split(labels, clusters, folds_wanted, params.seed)

    paths.POOL.parent.mkdir(parents=True, exist_ok=True)
    np.savez(paths.POOL, **_arrays(pool), folds=folds, clusters=clusters)
    np.savez(paths.TEST, **_arrays(test), twins=np.array([item.file.path in sorted_slices.twins for item in test]))
    audit = {
        "source": manifest.source,
        "digest": manifest.digest,
        **_count(slices, unreadable, sorted_slices),
        **_describe_folds(pool, labels, clusters, folds),
        "shortcuts": _probe_shortcuts(pool, labels, folds),
    }
    paths.AUDIT.write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    print(
        f"prepare: {len(pool)} images in {folds.max() + 1} folds and {clusters.max() + 1} clusters, {len(test)} in test"
        f" ({len(sorted_slices.twins)} twins); {len(unreadable)} unreadable, {len(sorted_slices.copies)} with copies,"
        f" {len(sorted_slices.conflicts)} with several labels"
    )


def cluster(pixels: NDArray[np.uint8], correlation: float) -> NDArray[np.int64]:
    """Group look-alikes: connected components of images whose thumbnails correlate by `correlation` or more.

    `pixels` uint8 [N, height, width, 1]; returns int64 [N]. A data set without patient ids has no better sign that
    two slices are of one scan.
    """
    side = (THUMBNAIL, THUMBNAIL)
    small = [Image.fromarray(image[:, :, 0]).resize(side, Image.Resampling.BILINEAR) for image in pixels]
    vectors = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    rows, columns = np.nonzero(vectors @ vectors.T >= correlation)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(vectors), len(vectors)))
    _, components = connected_components(links, directed=False)
    return np.asarray(components, np.int64)


def split(labels: NDArray[np.int64], clusters: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 to folds - 1, of each image: classes balanced, no cluster in two folds. All arrays int64 [N].

    Raises DataError for a class that does not reach every fold.
    """
    fold_of = np.zeros(len(labels), np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(labels, labels, clusters)):
        fold_of[held_out] = fold
    for label, name in enumerate(CLASSES):
        reached = len(np.unique(fold_of[labels == label]))
        if reached < folds:
            groups = len(np.unique(clusters[labels == label]))
            raise DataError(
                f"{name}: its images form {groups} clusters and reach {reached} of {folds} folds; add images, or lower"
                " prepare.folds, or raise prepare.cluster_correlation"
            )
    return fold_of


def _read(manifest: Manifest, spec: InputSpec) -> tuple[list[Slice], dict[str, str]]:
    """Every image that can be read, and for each other file the reason why not."""
    slices, unreadable = [], {}
    for file in tqdm(manifest.files, desc="decoding", unit="image"):
        content = _read_checked(paths.RAW / file.path, file.sha256)
        label = label_of(file.folder)
        if label is None:
            raise DataError(f"{paths.RAW / file.path}: its folder is none of the classes; run `dvc repro` again")
        try:
            picture = decode(content, spec)
        except InvalidImage as error:
            unreadable[file.path] = f"{error.code}: {error.message}"
            continue
        with Image.open(BytesIO(content)) as image:
            slices.append(Slice(file, label, *picture, mode=image.mode, format=str(image.format)))
    return slices, unreadable


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `dvc repro` runs ingest, which fetches it again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: not the file in {paths.MANIFEST}; `dvc repro` runs ingest, which fetches it again")
    return content


def _sort(slices: Sequence[Slice]) -> Sorted:
    groups: dict[bytes, list[Slice]] = {}
    for item in slices:
        if item.file.split != "test":
            groups.setdefault(item.identity, []).append(item)
    conflicts = [group for group in groups.values() if len({item.label for item in group}) > 1]
    kept = [group for group in groups.values() if len({item.label for item in group}) == 1]
    test = [item for item in slices if item.file.split == "test"]
    return Sorted(
        pool=[group[0] for group in kept],
        test=test,
        copies=[_paths(group) for group in kept if len(group) > 1],
        conflicts=[_paths(group) for group in conflicts],
        twins={item.file.path: groups[item.identity][0].file.path for item in test if item.identity in groups},
    )


def _paths(slices: Iterable[Slice]) -> list[str]:
    return [item.file.path for item in slices]


def _require(slices: Sequence[Slice], least: int, where: str) -> None:
    counts = Counter(item.label for item in slices)
    short = [f"{name} {counts[label]}" for label, name in enumerate(CLASSES) if counts[label] < least]
    if short:
        raise DataError(f"too few readable, distinct images in {where}: {', '.join(short)}")


def _arrays(slices: Sequence[Slice]) -> dict[str, Any]:
    return {
        "pixels": np.stack([item.pixels for item in slices]),
        "labels": np.array([item.label for item in slices], np.int64),
        "sha256": np.array([item.file.sha256 for item in slices]),
        "paths": np.array(_paths(slices)),
    }


def _count(slices: Sequence[Slice], unreadable: dict[str, str], outcome: Sorted) -> dict[str, Any]:
    test_labels = {item.file.path: item.label for item in outcome.test}
    return {
        "images": {
            part: _per_class(item.label for item in slices if item.file.split == part)
            for part in ("train", "valid", "test")
        },
        "pool": _per_class(item.label for item in outcome.pool),
        "formats": dict(sorted(Counter(f"{item.format} {item.mode}" for item in slices).items())),
        "misnamed": [
            item.file.path
            for item in slices
            if Path(item.file.path).suffix.lower() not in _SUFFIXES.get(item.format, set())
        ],
        "width": _range(item.width for item in slices),
        "height": _range(item.height for item in slices),
        "unreadable": unreadable,
        "copies": outcome.copies,
        "conflicts": outcome.conflicts,
        "twins_per_class": _per_class(test_labels[path] for path in outcome.twins),
        "twins": outcome.twins,
    }


def _describe_folds(
    pool: Sequence[Slice], labels: NDArray[np.int64], clusters: NDArray[np.int64], folds: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    sizes = np.bincount(clusters)
    members = [np.flatnonzero(clusters == index) for index in np.flatnonzero(sizes > 1)]
    return {
        "clusters": {
            "number": len(sizes),
            "of_one_image": int((sizes == 1).sum()),
            "largest": sorted((int(size) for size in sizes if size > 1), reverse=True)[:10],
            "per_class": {name: len(np.unique(clusters[labels == label])) for label, name in enumerate(CLASSES)},
            "with_several_classes": [
                _paths(pool[int(index)] for index in group) for group in members if len(np.unique(labels[group])) > 1
            ],
        },
        "folds": {str(fold): _per_class(labels[folds == fold].tolist()) for fold in np.unique(folds)},
    }


def _per_class(labels: Iterable[int]) -> dict[str, int]:
    counts = Counter(labels)
    return {name: counts[label] for label, name in enumerate(CLASSES)}


def _range(values: Iterable[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def _probe_shortcuts(
    pool: Sequence[Slice], labels: NDArray[np.int64], folds: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """How well plain facts about a file tell its class: what a model could learn instead of the lesion.

    Share of images right over the folds, by logistic regression. Width and height are gone from the model's input;
    what its grey levels still tell is under `grey_levels_of_input`.
    """
    size = np.log([[item.width, item.height, item.width / item.height] for item in pool])
    grey = np.array([[item.pixels.mean()] for item in pool])
    spread = np.array([[item.pixels.std(), (item.pixels < 8).mean(), (item.pixels > 247).mean()] for item in pool])
    normal = CLASSES.index(NORMAL)
    probes = {
        "width_height": size,
        "mean_grey": grey,
        "width_height_mean_grey": np.hstack([size, grey]),
        "grey_levels_of_input": np.hstack([grey, spread]),
    }
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    held_out = PredefinedSplit(folds)
    scores = {
        "majority_class": {
            "four_classes": float(np.bincount(labels).max() / len(labels)),
            "normal_or_cancer": float(max((labels == normal).mean(), (labels != normal).mean())),
        }
    }
    for name, features in probes.items():
        scores[name] = {
            task: float((cross_val_predict(model, features, truth, cv=held_out) == truth).mean())
            for task, truth in (("four_classes", labels), ("normal_or_cancer", labels == normal))
        }
    return {name: {task: round(score, 4) for task, score in tasks.items()} for name, tasks in scores.items()}


def main() -> None:
    stage.run(prepare)


if __name__ == "__main__":
    main()
