"""Audits a data set: duplicates, label conflicts, slices without lung, scans on both sides of a split, and shortcuts.

`find` sorts the images, and `describe` turns the findings into numbers. `find` compares the pixels of the test images
with those of train and valid. Nothing else uses the test images here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from chestct.standard_picture import AIR
from pipeline.images.classes import class_count, class_names, normal_index
from pipeline.images.input_facts import log_geometry
from pipeline.images.manifest import SPLITS
from pipeline.images.scans import compare_bounds
from pipeline.images.slices import Slice, grey_levels

_SUFFIXES: Final = {"PNG": {".png"}, "JPEG": {".jpg", ".jpeg"}}
_IN_WORDS: Final = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


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
    """The images of train and valid, without exact duplicates, label conflicts and slices without lung."""
    test: list[Slice]
    exact_duplicates: list[list[Slice]]
    """Groups of exact duplicates in train and valid with one label. The first of each group is in the pool."""
    label_conflicts: list[list[Slice]]
    """Groups of exact duplicates in train and valid with several labels. None of them is in the pool."""
    without_lung: list[Slice]
    """Slices that show hardly any lung. Those of train and valid are not in the pool."""
    duplicates: list[Pair]
    """Every two files, in any splits, that are exact or near duplicates."""
    test_duplicates: list[Pair]
    """Test images that have an exact or near duplicate in train or valid, each with that duplicate."""
    test_unseen: list[Slice]
    """Test images of scans that neither train nor valid has."""

    @property
    def near_duplicates(self) -> list[Pair]:
        """One pair of files for every two pictures that are near duplicates."""
        first: dict[frozenset[bytes], Pair] = {}
        for pair in self.duplicates:
            if not pair.exact:
                first.setdefault(frozenset((pair.one.identity, pair.other.identity)), pair)
        return list(first.values())


def find(slices: Sequence[Slice], *, duplicate: float, least_lung: float, without_lung: Set[str]) -> Findings:
    """Sort the images, whose scans are numbered.

    `duplicate` is the lowest thumbnail correlation of duplicates. A slice leaves if less than `least_lung` of its body
    is lung, or if the SHA-256 of its file is in `without_lung`.
    """
    groups: dict[bytes, list[Slice]] = {}
    for item in slices:
        if item.file.split != "test":
            groups.setdefault(item.identity, []).append(item)
    kept = [group for group in groups.values() if not several_labels(group)]
    lungless = [item for item in slices if item.lung < least_lung or item.file.sha256 in without_lung]
    left = {item.file.path for item in lungless}
    duplicates = _find_pairs(slices, duplicate)
    known = {item.scan for item in slices if item.file.split != "test"}
    test = [item for item in slices if item.file.split == "test"]
    return Findings(
        pool=[group[0] for group in kept if group[0].file.path not in left],
        test=test,
        exact_duplicates=[group for group in kept if len(group) > 1],
        label_conflicts=[group for group in groups.values() if several_labels(group)],
        without_lung=lungless,
        duplicates=duplicates,
        test_duplicates=_find_test_duplicates(duplicates),
        test_unseen=[item for item in test if item.scan not in known],
    )


def describe(
    slices: Sequence[Slice],
    unreadable: Mapping[str, str],
    findings: Findings,
    folds: NDArray[np.int64],
    looked_at: Set[str],
) -> dict[str, Any]:
    """The audit in JSON's types.

    `folds` int64 [N] are those of `findings.pool`; `looked_at` has the SHA-256 of the files that a person has grouped.
    """
    pool, test_duplicates = findings.pool, findings.test_duplicates
    near_duplicates, unseen = findings.near_duplicates, {item.scan for item in findings.test_unseen}
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
        "without_lung": {item.file.path: round(item.lung, 4) for item in findings.without_lung},
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
        "test_of_known_scans": per_class(item for item in findings.test if item.scan not in unseen),
        "test_of_new_scans": _paths(findings.test_unseen),
        "scans": _describe_scans(slices, pool) | {"looked_at": sum(item.file.sha256 in looked_at for item in slices)},
        "scan_bounds": compare_bounds(pool),
        "folds": {
            str(fold): per_class(pool[int(index)] for index in np.flatnonzero(folds == fold))
            for fold in np.unique(folds)
        },
        "shortcuts": _probe_shortcuts(pool, folds),
    }


def per_class(slices: Iterable[Slice]) -> dict[str, int]:
    """The number of images of each class, by its name."""
    counts = Counter(item.label for item in slices)
    return {name: counts[label] for label, name in enumerate(class_names())}


def scans_of(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The distinct images of each scan of two or more, the largest scan first."""
    groups: dict[int, dict[bytes, Slice]] = {}
    for item in slices:
        groups.setdefault(item.scan, {}).setdefault(item.identity, item)
    return sorted((list(group.values()) for group in groups.values() if len(group) > 1), key=len, reverse=True)


def several_labels(group: Sequence[Slice]) -> bool:
    """Whether the images of the group have different labels."""
    return len({item.label for item in group}) > 1


def _find_pairs(slices: Sequence[Slice], correlation: float) -> list[Pair]:
    vectors = np.stack([item.thumbnail for item in slices])
    correlations = vectors @ vectors.T
    alike = {(int(a), int(b)) for a, b in np.argwhere(np.triu(correlations >= correlation, 1))}
    equal: dict[bytes, list[int]] = {}
    for index, item in enumerate(slices):
        equal.setdefault(item.identity, []).append(index)
    alike |= {pair for group in equal.values() for pair in combinations(group, 2)}  # blank pictures correlate by 0
    return [Pair(slices[a], slices[b], float(correlations[a, b])) for a, b in sorted(alike)]


def _find_test_duplicates(pairs: Iterable[Pair]) -> list[Pair]:
    """The test_duplicates of Findings. Of several duplicates, an exact one comes first, then the most alike."""
    best: dict[str, Pair] = {}
    for pair in pairs:
        one, other = sorted(pair[:2], key=lambda item: item.file.split != "test")
        if one.file.split == "test" != other.file.split:
            found = Pair(one, other, pair.correlation)
            known = best.setdefault(one.file.path, found)
            if (found.exact, found.correlation) > (known.exact, known.correlation):
                best[one.file.path] = found
    return list(best.values())


def _paths(slices: Iterable[Slice]) -> list[str]:
    return [item.file.path for item in slices]


def _with_correlation(pair: Pair) -> dict[str, Any]:
    return {"paths": pair.paths, "correlation": round(pair.correlation, 4)}


def _count_pairs(pairs: Iterable[Pair]) -> dict[str, dict[str, int]]:
    """The number of pairs by their splits and class; `several` counts pairs with different classes."""
    counts = {
        f"{one} {other}": dict.fromkeys((*class_names(), "several"), 0)
        for one, other in combinations_with_replacement(SPLITS, 2)
    }
    for pair in pairs:
        one, other = sorted((pair.one.file.split, pair.other.file.split), key=SPLITS.index)
        counts[f"{one} {other}"]["several" if pair.conflict else class_names()[pair.one.label]] += 1
    return counts


def _describe_scans(slices: Sequence[Slice], pool: Sequence[Slice]) -> dict[str, Any]:
    groups = scans_of(pool)
    number = len({item.scan for item in pool})
    return {
        "number": number,
        "of_one_image": number - len(groups),
        "largest": [len(group) for group in groups[:10]],
        "per_class": {
            name: len({item.scan for item in pool if item.label == label}) for label, name in enumerate(class_names())
        },
        "with_several_classes": [_paths(group) for group in scans_of(slices) if several_labels(group)],
    }


def _range(values: Iterable[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def _probe_shortcuts(pool: Sequence[Slice], folds: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """How well simple features predict the class. A network could learn these shortcuts instead of the lesion.

    A linear discriminant with equal priors is fitted and tested over the folds. It gives the accuracy and, as
    `balanced`, the mean accuracy of the classes. `file_` features describe the original picture. `input_` features
    describe the standard picture, so they show what of the file's style is left in what the model sees.
    """
    labels = np.array([item.label for item in pool])
    geometry = log_geometry([item.facts for item in pool])
    before = np.stack([item.greys for item in pool])
    after = np.stack([grey_levels(item.pixels) for item in pool])
    outline = np.stack([_outline(item.pixels) for item in pool])
    probes = {
        "majority_class": np.zeros((len(pool), 1)),
        "file_geometry": geometry,
        "file_grey_levels": before[:, :4],
        "file_frame": before[:, 4:],
        "file_all": np.hstack([geometry, before]),
        "input_mean_grey": after[:, :1],
        "input_grey_levels": after[:, :4],
        "input_frame": after[:, 4:],
        "input_outline": outline,
        "input_all": np.hstack([after, outline]),
    }
    tasks = {
        f"{_IN_WORDS[class_count()]}_classes": labels,
        "normal_or_cancer": (labels == normal_index()).astype(np.int64),
    }
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


def _outline(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The logarithm of the body's width by its height, and its share of the standard picture [S, S, 1]; float64 [2]."""
    body = pixels[:, :, 0] != AIR
    width, height = (max(1, int(body.any(axis=axis).sum())) for axis in (0, 1))
    return np.array([np.log(width / height), body.mean()])
