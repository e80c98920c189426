"""Phantoms vary like the real set, and only the lesion tells their class."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.core.params import PhantomCounts
from pipeline.images.classes import CLASSES, NORMAL
from pipeline.images.phantoms import draw_phantom, draw_phantoms

NORMAL_LABEL = CLASSES.index(NORMAL)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Width, height, aspect, mode, bytes and mean grey of 160 phantom files, and their classes."""
    folder = tmp_path_factory.mktemp("phantoms")
    draw_phantoms(folder, PhantomCounts(train=38, valid=1, test=1), seed=5)
    rows, labels = [], []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            grey = float(np.asarray(image.convert("L")).mean())
            width, height = image.size
            rows.append((width, height, width / height, len(image.mode), path.stat().st_size, grey))
        labels.append(CLASSES.index(path.parent.name))
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize(
    "model",
    [make_pipeline(StandardScaler(), LogisticRegression()), RandomForestClassifier(100, random_state=0)],
    ids=["linear", "forest"],
)
def test_file_geometry_and_mean_grey_do_not_predict_the_class(
    facts: tuple[np.ndarray, np.ndarray], model: object
) -> None:
    assert cross_val_score(model, *facts, cv=5).mean() <= 0.40


def test_sizes_and_modes_vary_as_in_the_real_set(facts: tuple[np.ndarray, np.ndarray]) -> None:
    rows, _ = facts
    assert rows[:, 0].min() >= 128
    assert rows[:, 0].max() <= 400
    assert len(np.unique(rows[:, 0])) > 80
    assert set(rows[:, 3]) == {len("RGBA"), len("RGB"), len("L")}


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    counts = PhantomCounts(train=1, valid=1, test=1)
    drawn = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        draw_phantoms(tmp_path / name, counts, seed)
        drawn.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))])
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_no_two_phantoms_are_alike(drawn: Path) -> None:
    contents = [path.read_bytes() for path in drawn.rglob("*.png")]
    assert len(set(contents)) == len(contents) == 28


def test_every_split_has_every_class(drawn: Path) -> None:
    counts = Counter(path.parts[-3:-1] for path in drawn.rglob("*.png"))
    assert counts == {
        (split, name): count for split, count in (("train", 4), ("valid", 2), ("test", 1)) for name in CLASSES
    }


@pytest.mark.parametrize("label", [index for index in range(len(CLASSES)) if index != NORMAL_LABEL])
def test_a_cancer_differs_from_the_normal_slice_of_the_same_chest_only_where_the_lesion_is(label: int) -> None:
    for seed in range(8):
        normal = draw_phantom(NORMAL_LABEL, np.random.default_rng(seed))
        cancer = draw_phantom(label, np.random.default_rng(seed))
        assert (cancer.size, cancer.mode) == (normal.size, normal.mode)
        changed = np.asarray(normal.convert("L")) != np.asarray(cancer.convert("L"))
        assert 0 < changed.mean() < 0.15
