"""What is wrong with a data set: the same picture twice, on both sides of a split or under two labels, and shortcuts.

`find` sorts the images by it, `describe` puts it into numbers. Finding reads the test images' pixels, to say which of
them stand in train or valid; nothing else of them is looked at.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from pipeline.images.classes import CLASSES, NORMAL
from pipeline.images.duplicates import find_twins, thumbnails
from pipeline.images.manifest import SPLITS
from pipeline.images.slices import Slice, grey_levels

_SUFFIXES: Final = {"PNG": {".png"}, "JPEG": {".jpg", ".jpeg"}}


class Pair(NamedTuple):
    """Two files, and the correlation of their thumbnails."""

    one: Slice
    other: Slice
    correlation: float

    @property
    def paths(self) -> list[str]:
        return [self.one.file.path, self.other.file.path]

    @property
    def exact(self) -> bool:
        return self.one.identity == self.other.identity


class Findings(NamedTuple):
    """The images by what is to become of them."""

    pool: list[Slice]
    """Train and valid: one of each picture, none with two labels."""
    test: list[Slice]
    copies: list[list[Slice]]
    """Files in train and valid that show one picture, pixel for pixel, the kept one first."""
    conflicts: list[list[Slice]]
    """Files in train and valid that show one picture, pixel for pixel, under several labels; all left out."""
    duplicates: list[Pair]
    """Every two files that show the same picture, exactly or nearly, in whatever splits."""
    twins: list[Pair]
    """An image of test, and the image of train or valid that shows the same picture."""
    look_alikes: list[Pair]
    """An image of test without a twin, and the image of train or valid of which it would be in one cluster."""

    @property
    def near(self) -> list[Pair]:
        """The duplicates that are not equal, one for each two pictures, however many files show them."""
        first: dict[frozenset[bytes], Pair] = {}
        for pair in self.duplicates:
            if not pair.exact:
                first.setdefault(frozenset((pair.one.identity, pair.other.identity)), pair)
        return list(first.values())


def find(slices: Sequence[Slice], *, duplicate: float, look_alike: float) -> Findings:
    """Sort the images; from the correlations `duplicate` and `look_alike` on, two show one picture or one scan."""
    groups: dict[bytes, list[Slice]] = {}
    for item in slices:
        if item.file.split != "test":
            groups.setdefault(item.identity, []).append(item)
    kept = [group for group in groups.values() if len({item.label for item in group}) == 1]
    twins, look_alikes = _compare_test(slices, duplicate, look_alike)
    return Findings(
        pool=[group[0] for group in kept],
        test=[item for item in slices if item.file.split == "test"],
        copies=[group for group in kept if len(group) > 1],
        conflicts=[group for group in groups.values() if len({item.label for item in group}) > 1],
        duplicates=_find_duplicates(slices, duplicate),
        twins=twins,
        look_alikes=look_alikes,
    )


def describe(
    slices: Sequence[Slice],
    unreadable: Mapping[str, str],
    findings: Findings,
    clusters: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> dict[str, Any]:
    """The audit as JSON takes it; `clusters` and `folds` int64 [N] are those of `findings.pool`."""
    pool, twins = findings.pool, findings.twins
    return {
        "images": {part: per_class(item for item in slices if item.file.split == part) for part in SPLITS},
        "pool": per_class(pool),
        "formats": dict(sorted(Counter(f"{item.format} {item.mode}" for item in slices).items())),
        "misnamed": [
            item.file.path
            for item in slices
            if Path(item.file.path).suffix.lower() not in _SUFFIXES.get(item.format, set())
        ],
        "width": _range(item.width for item in slices),
        "height": _range(item.height for item in slices),
        "unreadable": dict(unreadable),
        "copies": [_paths(group) for group in findings.copies],
        "conflicts": [_paths(group) for group in findings.conflicts],
        "duplicate_pairs": {
            "exact": _count_pairs(pair for pair in findings.duplicates if pair.exact),
            "near": _count_pairs(pair for pair in findings.duplicates if not pair.exact),
        },
        "near_duplicates": [_in_words(pair) for pair in findings.near],
        "near_conflicts": [pair.paths for pair in findings.near if pair.one.label != pair.other.label],
        "twins_per_class": per_class(pair.one for pair in twins),
        "twins": dict(pair.paths for pair in twins if pair.exact),
        "near_twins": [_in_words(pair) for pair in twins if not pair.exact],
        "twins_with_another_label": [pair.paths for pair in twins if pair.one.label != pair.other.label],
        "test_look_alikes": [_in_words(pair) for pair in findings.look_alikes],
        **_describe_clusters(pool, clusters),
        "folds": {
            str(fold): per_class(pool[int(index)] for index in np.flatnonzero(folds == fold))
            for fold in np.unique(folds)
        },
        "shortcuts": _probe_shortcuts(pool, folds),
    }


def per_class(slices: Iterable[Slice]) -> dict[str, int]:
    counts = Counter(item.label for item in slices)
    return {name: counts[label] for label, name in enumerate(CLASSES)}


def _find_duplicates(slices: Sequence[Slice], correlation: float) -> list[Pair]:
    vectors = thumbnails(np.stack([item.pixels for item in slices]))
    likeness = vectors @ vectors.T
    alike = {(int(a), int(b)) for a, b in np.argwhere(np.triu(likeness >= correlation, 1))}
    equal: dict[bytes, list[int]] = {}
    for index, item in enumerate(slices):
        equal.setdefault(item.identity, []).append(index)
    alike |= {pair for group in equal.values() for pair in combinations(group, 2)}  # blank pictures correlate by 0
    return [Pair(slices[a], slices[b], float(likeness[a, b])) for a, b in sorted(alike)]


def _compare_test(slices: Sequence[Slice], duplicate: float, look_alike: float) -> tuple[list[Pair], list[Pair]]:
    """The twins and the look-alikes of Findings."""
    test = [item for item in slices if item.file.split == "test"]
    known = [item for item in slices if item.file.split != "test"]
    if not test or not known:
        return [], []
    pixels, others = (np.stack([item.pixels for item in part]) for part in (test, known))
    likeness = thumbnails(pixels) @ thumbnails(others).T
    twin_of, nearest = find_twins(pixels, others, duplicate), likeness.argmax(axis=1)
    twins, look_alikes = [], []
    for row, item in enumerate(test):
        twin, near = int(twin_of[row]), int(nearest[row])
        if twin >= 0:
            twins.append(Pair(item, known[twin], float(likeness[row, twin])))
        elif likeness[row, near] >= look_alike:
            look_alikes.append(Pair(item, known[near], float(likeness[row, near])))
    return twins, look_alikes


def _paths(slices: Iterable[Slice]) -> list[str]:
    return [item.file.path for item in slices]


def _in_words(pair: Pair) -> dict[str, Any]:
    return {"paths": pair.paths, "correlation": round(pair.correlation, 4)}


def _count_pairs(pairs: Iterable[Pair]) -> dict[str, dict[str, int]]:
    """Pairs of files by their splits and class, `several` where the two have different ones."""
    kinds = {f"{one} {other}": dict.fromkeys((*CLASSES, "several"), 0) for one, other in _SPLIT_PAIRS}
    for pair in pairs:
        one, other = sorted((pair.one.file.split, pair.other.file.split), key=SPLITS.index)
        label = CLASSES[pair.one.label] if pair.one.label == pair.other.label else "several"
        kinds[f"{one} {other}"][label] += 1
    return kinds


_SPLIT_PAIRS: Final = [(one, other) for index, one in enumerate(SPLITS) for other in SPLITS[index:]]


def _describe_clusters(pool: Sequence[Slice], clusters: NDArray[np.int64]) -> dict[str, Any]:
    groups = clusters_of(pool, clusters)
    labels = np.array([item.label for item in pool])
    return {
        "clusters": {
            "number": int(clusters.max()) + 1,
            "of_one_image": int(clusters.max()) + 1 - len(groups),
            "largest": [len(group) for group in groups[:10]],
            "per_class": {name: len(np.unique(clusters[labels == label])) for label, name in enumerate(CLASSES)},
            "with_several_classes": [_paths(group) for group in groups if len({item.label for item in group}) > 1],
        }
    }


def clusters_of(pool: Sequence[Slice], clusters: NDArray[np.int64]) -> list[list[Slice]]:
    """The look-alikes that form each cluster of two or more images, the largest first."""
    groups = [[pool[int(index)] for index in np.flatnonzero(clusters == each)] for each in np.unique(clusters)]
    return sorted((group for group in groups if len(group) > 1), key=len, reverse=True)


def _range(values: Iterable[int]) -> dict[str, int]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def _probe_shortcuts(pool: Sequence[Slice], folds: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """How well plain facts about a picture tell its class: what a model could learn instead of the lesion.

    By a linear discriminant over the folds, every class as likely beforehand: the share of images right, and `balanced`
    the mean of the classes' shares. `file_` is the picture as it came, `input_` what the model sees of it, where the
    file's width and height are gone.
    """
    labels = np.array([item.label for item in pool])
    geometry = np.log([[item.width, item.height, item.width / item.height] for item in pool])
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
            alike = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(count, 1 / count))
            model = DummyClassifier() if name == "majority_class" else alike
            told = cross_val_predict(model, features, truth, cv=PredefinedSplit(folds))
            scores[name][task] = round(float(accuracy_score(truth, told)), 4)
            scores[name][f"{task}_balanced"] = round(float(balanced_accuracy_score(truth, told)), 4)
    return scores
