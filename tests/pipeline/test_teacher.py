"""A teacher never saw what its pupil is judged by, and its pupil learns from it."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import softmax

from pipeline import paths, train
from pipeline.base_model import LOGITS, base_model, build, build_teacher
from pipeline.errors import StageError
from pipeline.params import Params
from pipeline.teacher import teacher

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (24, 48, 48, 1), dtype=np.uint8)
LABELS = np.arange(24) % 4
FOLDS = np.arange(24) // 4 % 2
SMALL = {
    "prepare.image_size": 48,
    "prepare.folds": 2,
    "base_model.backbone": "small",
    "base_model.weights": "none",
    "teacher.share": 0.7,
    "teacher.backbone": "small",
    "teacher.weights": "none",
    "teacher.image_size": 32,
    "teacher.epochs": 1,
    "teacher.mixed_precision": False,
    "train.head_epochs": 0,
}

Write = Callable[[dict[str, Any]], Params]


@pytest.fixture
def pooled(tracked: Path) -> Path:
    """A workspace with all that teacher and train read."""
    for path in (paths.POOL, paths.AUDIT, paths.CONTACT_SHEET):
        path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(paths.POOL, pixels=PIXELS, labels=LABELS, folds=FOLDS, clusters=np.arange(24))
    paths.MANIFEST.write_text(json.dumps({"source": "local", "digest": "ab" * 32, "files": []}), encoding="utf-8")
    paths.AUDIT.write_text("{}", encoding="utf-8")
    paths.CONTACT_SHEET.write_bytes(b"PNG")
    return tracked


def test_a_fold_is_learnt_from_a_teacher_that_has_not_seen_it_either(
    pooled: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = write_params(SMALL)
    base_model(params)
    images_of: dict[str, set[bytes]] = {}

    def train_teacher(part: train.Pool, held_out: None, own: Params, name: str, base: Path) -> Any:
        assert held_out is None, "no image chooses an epoch"
        assert (own.train.epochs, own.base_model.backbone) == (1, "small")
        network = keras.models.load_model(base)
        network.get_layer(LOGITS).bias.assign(RNG.normal(size=4))
        images_of[str(network.get_layer(LOGITS).bias.numpy())] = {image.tobytes() for image in part.pixels}
        return network, [{"loss": 1.0}]

    seen: list[tuple[set[bytes], set[bytes], set[bytes]]] = []

    def train_pupil(part: train.Pool, held_out: train.Pool | None, *_: Any, teacher: keras.Model, **__: Any) -> Any:
        taught_by = images_of[str(teacher.get_layer(LOGITS).bias.numpy())]
        judged_by = set() if held_out is None else {image.tobytes() for image in held_out.pixels}
        seen.append(({image.tobytes() for image in part.pixels}, taught_by, judged_by))
        return build(params), [{"loss": 1.0, "val_loss": 1.0}]

    monkeypatch.setattr("pipeline.teacher.fit", train_teacher)
    teacher(params)
    monkeypatch.setattr(train, "fit", train_pupil)
    monkeypatch.setattr(train, "_keep_folds", lambda *_: None)
    monkeypatch.setattr(train, "_score_folds", lambda *_: np.zeros((24, 4), np.float32))
    train.train(params)

    assert [(len(learnt), len(judged_by)) for learnt, _, judged_by in seen] == [(12, 12), (12, 12), (24, 0)]
    for learnt, taught_by, judged_by in seen:
        assert taught_by == learnt
        assert not taught_by & judged_by


def test_a_batch_mixes_labels_and_what_the_teacher_says_of_the_changed_pictures(write_params: Write) -> None:
    params = write_params({**SMALL, "teacher.share": 0.75, "train.batch_size": 8})
    network = build_teacher(params)
    part = train.Pool(PIXELS, LABELS, FOLDS, np.zeros((24, 1), np.float32))
    alone, taught = (train.Batches(part, np.ones(4, np.float32), params, each) for each in (None, network))
    for index in range(len(alone)):
        pixels, labels, _ = alone[index]
        same, targets, _ = taught[index]
        assert np.array_equal(pixels, same)
        expected = 0.25 * labels + 0.75 * softmax(network.predict(pixels, verbose=0), axis=1)
        assert targets == pytest.approx(expected, abs=1e-6)
        assert targets.dtype == np.float32


def test_a_pupil_comes_closer_to_its_teacher_than_one_that_learns_labels_alone(
    pooled: Path, write_params: Write
) -> None:
    params = write_params({**SMALL, "teacher.share": 1.0, "train.epochs": 12, "train.learning_rate": 3e-3})
    base_model(params)
    part = train.Pool(PIXELS, LABELS, FOLDS, np.load(paths.FEATURES)["features"])
    network = build_teacher(params)
    network.layers[-1].set_weights([np.zeros((96, 4), np.float32), np.array([0.0, 3.0, 0.0, 0.0], np.float32)])
    says = softmax(network.predict(PIXELS, verbose=0), axis=1)
    distance = []
    for taught in (None, network):
        pupil, _ = train.fit(part, None, params, "test", teacher=taught)
        distance.append(np.abs(softmax(pupil.predict(PIXELS, verbose=0), axis=1) - says).mean())
    assert distance[1] < distance[0] / 2


@pytest.mark.long
def test_teachers_are_trained_and_taught_by_as_the_stages_do_it(pooled: Path, write_params: Write) -> None:
    params = write_params({**SMALL, "teacher.mixed_precision": True, "train.epochs": 1})
    base_model(params)
    teacher(params)
    said = [keras.models.load_model(path).predict(PIXELS, verbose=0) for path in sorted(paths.TEACHERS.iterdir())]
    assert [path.stem for path in sorted(paths.TEACHERS.iterdir())] == ["all", "fold0", "fold1"]
    assert not any(np.allclose(one, other) for one, other in combinations(said, 2))
    train.train(params)
    assert np.load(paths.OUT_OF_FOLD)["logits"].shape == (24, 4)


def test_no_share_trains_no_teacher(pooled: Path, write_params: Write) -> None:
    paths.TEACHERS.mkdir(parents=True)
    paths.teacher(7).write_bytes(b"of another number of folds")
    params = write_params({**SMALL, "teacher.share": 0})
    teacher(params)
    assert list(paths.TEACHERS.iterdir()) == []
    assert train.load_teacher(0, params) is None


def test_a_teacher_that_diverged_is_named_with_the_key_to_lower(
    pooled: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.teacher.fit", lambda *_, **__: (None, [{"loss": float("nan")}]))
    with pytest.raises(StageError, match=r"teacher 1 of 2 diverged.*lower teacher\.learning_rate"):
        teacher(write_params(SMALL))
    assert list(paths.TEACHERS.iterdir()) == []


def test_weights_that_a_teacher_lacks_are_named_by_its_own_key(pooled: Path, write_params: Write) -> None:
    params = write_params({**SMALL, "teacher.backbone": "mobilenet_v2", "teacher.weights": "absent.weights.h5"})
    with pytest.raises(StageError, match=r"^teacher\.weights: absent\.weights\.h5 does not hold the weights of"):
        teacher(params)
    assert list(paths.TEACHERS.iterdir()) == []


def test_a_teacher_shrinks_what_the_network_sees(write_params: Write) -> None:
    network = build_teacher(write_params(SMALL))
    assert network.input_shape == (None, 48, 48, 1)
    assert network.get_layer("shrunk").output.shape == (None, 32, 32, 1)
