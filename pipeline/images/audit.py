"""Audits a data set: duplicates, label conflicts, test images that were trained on, and shortcuts to the class.

`find` sorts the images, and `describe` turns the findings into numbers. `find` compares the pixels of the test images
with those of train and valid. Nothing else uses the test images here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from pipeline.images.classes import CLASSES, NORMAL
from pipeline.images.duplicates import find_duplicates
from pipeline.images.input_facts import log_geometry
from pipeline.images.manifest import SPLITS
from pipeline.images.slices import Slice, grey_levels
from pipeline.images.thumbnails import thumbnails

_SUFFIXES: Final = {"PNG": {".png"}, "JPEG": {".jpg", ".jpeg"}}


class Pair(NamedTuple):
    """Two files and the correlation of their thumbnails."""

    one: Slice
    other: Slice
    correlation: float

    @property
    def paths(self) -> list[str]:
        return _paths(self[:2])

    @property
    def exact(self) -> bool:
        return self.one.identity == self.other.identity

    @property
    def conflict(self) -> bool:
        """Whether the two files have different labels."""
        return self.one.label != self.other.label


class Findings(NamedTuple):
    """The images of a data set, sorted by how they are used, and its faults."""

    pool: list[Slice]
    """The images of train and valid, without exact duplicates and label conflicts."""
    test: list[Slice]
    exact_duplicates: list[list[Slice]]
    """Groups of exact duplicates in train and valid with one label. The first of each group is in the pool."""
    label_conflicts: list[list[Slice]]
    """Groups of exact duplicates in train and valid with several labels. None of them is in the pool."""
    duplicates: list[Pair]
    """Every two files, in any splits, that are exact or near duplicates."""
    test_duplicates: list[Pair]
    """Test images that have an exact or near duplicate in train or valid, each with that duplicate."""
    test_look_alikes: list[Pair]
    """Test images without a duplicate that look like an image of train or valid, each with that image."""

    @property
    def near_duplicates(self) -> list[Pair]:
        """One pair of files for every two pictures that are near duplicates."""
        first: dict[frozenset[bytes], Pair] = {}
        for pair in self.duplicates:
            if not pair.exact:
                first.setdefault(frozenset((pair.one.identity, pair.other.identity)), pair)
        return list(first.values())


def find(slices: Sequence[Slice], *, duplicate: float, look_alike: float) -> Findings:
    """Sort the images. `duplicate` and `look_alike` are the lowest thumbnail correlations of each kind of pair."""
    groups: dict[bytes, list[Slice]] = {}
    for item in slices:
        if item.file.split != "test":
            groups.setdefault(item.identity, []).append(item)
    kept = [group for group in groups.values() if not several_labels(group)]
    test_duplicates, test_look_alikes = _compare_test(slices, duplicate, look_alike)
    return Findings(
        pool=[group[0] for group in kept],
        test=[item for item in slices if item.file.split == "test"],
        exact_duplicates=[group for group in kept if len(group) > 1],
        label_conflicts=[group for group in groups.values() if several_labels(group)],
        duplicates=_find_pairs(slices, duplicate),
        test_duplicates=test_duplicates,
        test_look_alikes=test_look_alikes,
    )


def describe(
    slices: Sequence[Slice],
    unreadable: Mapping[str, str],
    findings: Findings,
    scans: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> dict[str, Any]:
    """The audit in JSON's types. `scans` and `folds` int64 [N] are those of `findings.pool`."""
    pool, test_duplicates = findings.pool, findings.test_duplicates
    near_duplicates = findings.near_duplicates
    return {
        "images": {part: per_class(item for item in slices if item.file.split == part) for part in SPLITS},
        "pool": per_class(pool),
        "formats": dict(sorted(Counter(f"{item.format} {item.mode}" for item in slices).items())),
        "misnamed": [
            item.file.path
            for item in slices
            if Path(item.file.path).suffix.lower() not in _SUFFIXES.get(item.format, set())
        ],
        "width": _range(item.facts.width for item in slices),
        "height": _range(item.facts.height for item in slices),
        "unreadable": dict(unreadable),
        "copies": [_paths(group) for group in findings.exact_duplicates],
        "conflicts": [_paths(group) for group in findings.label_conflicts],
        "duplicate_pairs": {
            "exact": _count_pairs(pair for pair in findings.duplicates if pair.exact),
            "near": _count_pairs(pair for pair in findings.duplicates if not pair.exact),
        },
        "near_duplicates": [_with_correlation(pair) for pair in near_duplicates],
        "near_conflicts": [pair.paths for pair in near_duplicates if pair.conflict],
        "twins_per_class": per_class(pair.one for pair in test_duplicates),
        "twins": dict(pair.paths for pair in test_duplicates if pair.exact),
        "near_twins": [_with_correlation(pair) for pair in test_duplicates if not pair.exact],
        "twins_with_another_label": [pair.paths for pair in test_duplicates if pair.conflict],
        "test_look_alikes": [_with_correlation(pair) for pair in findings.test_look_alikes],
        "scans": _describe_scans(pool, scans),
        "folds": {
            str(fold): per_class(pool[int(index)] for index in np.flatnonzero(folds == fold))
            for fold in np.unique(folds)
        },
        "shortcuts": _probe_shortcuts(pool, folds),
    }


def per_class(slices: Iterable[Slice]) -> dict[str, int]:
    """The number of images of each class, by its name."""
    counts = Counter(item.label for item in slices)
    return {name: counts[label] for label, name in enumerate(CLASSES)}


def scans_of(pool: Sequence[Slice], scans: NDArray[np.int64]) -> list[list[Slice]]:
    """The images of each scan of two or more, the largest scan first; `scans` int64 [N]."""
    groups = [[pool[int(index)] for index in np.flatnonzero(scans == each)] for each in np.unique(scans)]
    return sorted((group for group in groups if len(group) > 1), key=len, reverse=True)


def several_labels(group: Sequence[Slice]) -> bool:
    """Whether the images of the group have different labels."""
    return len({item.label for item in group}) > 1


def _find_pairs(slices: Sequence[Slice], correlation: float) -> list[Pair]:
    vectors = thumbnails(np.stack([item.pixels for item in slices]))
    correlations = vectors @ vectors.T
    alike = {(int(a), int(b)) for a, b in np.argwhere(np.triu(correlations >= correlation, 1))}
    equal: dict[bytes, list[int]] = {}
    for index, item in enumerate(slices):
        equal.setdefault(item.identity, []).append(index)
    alike |= {pair for group in equal.values() for pair in combinations(group, 2)}  # blank pictures correlate by 0
    return [Pair(slices[a], slices[b], float(correlations[a, b])) for a, b in sorted(alike)]


def _compare_test(slices: Sequence[Slice], duplicate: float, look_alike: float) -> tuple[list[Pair], list[Pair]]:
    """The test_duplicates and the test_look_alikes of Findings."""
    test = [item for item in slices if item.file.split == "test"]
    known = [item for item in slices if item.file.split != "test"]
    if not test or not known:
        return [], []
    pixels, known_pixels = (np.stack([item.pixels for item in part]) for part in (test, known))
    correlations = thumbnails(pixels) @ thumbnails(known_pixels).T
    nearest = correlations.argmax(axis=1)
    duplicates, look_alikes = [], []
    for row, index in enumerate(find_duplicates(pixels, known_pixels, duplicate)):
        if index >= 0:
            duplicates.append(Pair(test[row], known[index], float(correlations[row, index])))
        elif correlations[row, nearest[row]] >= look_alike:
            look_alikes.append(Pair(test[row], known[nearest[row]], float(correlations[row, nearest[row]])))
    return duplicates, look_alikes


def _paths(slices: Iterable[Slice]) -> list[str]:
    return [item.file.path for item in slices]


def _with_correlation(pair: Pair) -> dict[str, Any]:
    return {"paths": pair.paths, "correlation": round(pair.correlation, 4)}


def _count_pairs(pairs: Iterable[Pair]) -> dict[str, dict[str, int]]:
    """The number of pairs by their splits and class; `several` counts pairs with different classes."""
    counts = {
        f"{one} {other}": dict.fromkeys((*CLASSES, "several"), 0)
        for one, other in combinations_with_replacement(SPLITS, 2)
    }
    for pair in pairs:
        one, other = sorted((pair.one.file.split, pair.other.file.split), key=SPLITS.index)
        counts[f"{one} {other}"]["several" if pair.conflict else CLASSES[pair.one.label]] += 1
    return counts


def _describe_scans(pool: Sequence[Slice], scans: NDArray[np.int64]) -> dict[str, Any]:
    groups = scans_of(pool, scans)
    labels = np.array([item.label for item in pool])
    number = len(np.unique(scans))
    return {
        "number": number,
        "of_one_image": number - len(groups),
        "largest": [len(group) for group in groups[:10]],
        "per_class": {name: len(np.unique(scans[labels == label])) for label, name in enumerate(CLASSES)},
        "with_several_classes": [_paths(group) for group in groups if several_labels(group)],
    }


def _range(values: Iterable[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def _probe_shortcuts(pool: Sequence[Slice], folds: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """How well simple features predict the class. A network could learn these shortcuts instead of the lesion.

    A linear discriminant with equal priors is fitted and tested over the folds. It gives the accuracy and, as
    `balanced`, the mean accuracy of the classes. `file_` features describe the original picture; `input_` features
    describe the model's input, which no longer has the file's width and height.
    """
    labels = np.array([item.label for item in pool])
    geometry = log_geometry([item.facts for item in pool])
    before = np.stack([item.greys for item in pool])
    after = np.stack([grey_levels(item.pixels) for item in pool])
    probes = {
        "majority_class": np.zeros((len(pool), 1)),
        "file_geometry": geometry,
        "file_grey_levels": before[:, :4],
        "file_frame": before[:, 4:],
        "file_all": np.hstack([geometry, before]),
        "input_mean_grey": after[:, :1],
        "input_grey_levels": after[:, :4],
        "input_frame": after[:, 4:],
        "input_all": after,
    }
    tasks = {"four_classes": labels, "normal_or_cancer": (labels == CLASSES.index(NORMAL)).astype(np.int64)}
    scores: dict[str, dict[str, float]] = {}
    for name, features in probes.items():
        scores[name] = {}
        for task, truth in tasks.items():
            count = truth.max() + 1
            discriminant = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(count, 1 / count))
            model = DummyClassifier() if name == "majority_class" else discriminant
            predicted = cross_val_predict(model, features, truth, cv=PredefinedSplit(folds))
            scores[name][task] = round(float(accuracy_score(truth, predicted)), 4)
            scores[name][f"{task}_balanced"] = round(float(balanced_accuracy_score(truth, predicted)), 4)
    return scores
