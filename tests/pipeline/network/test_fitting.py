"""Training: frozen layers, weights and order of the images, epochs and their record."""

import keras
import numpy as np
import pytest

from pipeline.base_model import base_model
from pipeline.core import paths
from pipeline.network.build import LOGITS, build
from pipeline.network.fitting import Batches, Extra, Pool, accuracy, class_weights, fit, freeze, make_loss
from tests.pipeline.conftest import small_params

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
LABELS = np.arange(24) % 4
LITE0 = {"base_model__backbone": "efficientnet_lite0", "base_model__weights": "imagenet"}


@pytest.fixture
def prepared(workspace):
    """The workspace after stage prepare."""
    paths.POOL.parent.mkdir(parents=True)
    np.savez(paths.POOL, pixels=PIXELS, labels=LABELS, folds=np.arange(24) % 3, scans=np.arange(24))
    return workspace


def test_the_first_layers_and_depthwise_kernels_keep_their_pretrained_weights():
    params = small_params(**LITE0, train__frozen_layers=0.2, train__frozen_depthwise=True)
    network = build(params)
    freeze(network, params)
    learning = {layer.name for layer in network.layers if layer.trainable_weights}
    assert {"blocks_15_project_conv", LOGITS} <= learning
    assert not {"conv_stem", "blocks_0_project_conv", "blocks_15_depthwise_conv"} & learning


def test_without_pretrained_weights_no_layer_is_frozen():
    params = small_params(train__frozen_layers=0.9)
    network = build(params)
    before = len(network.trainable_weights)
    freeze(network, params)
    assert len(network.trainable_weights) == before


def test_classes_weigh_the_same_and_an_image_one_on_average():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 2 + [3])
    weights = class_weights(labels)
    assert np.bincount(labels) * weights == pytest.approx([3, 3, 3, 3])
    assert weights[labels].mean() == pytest.approx(1)


def pool(labels=LABELS) -> Pool:
    count = len(labels)
    features = RNG.normal(size=(count, 96)).astype(np.float32)
    sizes = np.full((count, 2), 64)
    return Pool(
        PIXELS[:count], PIXELS[:count, :, :, 0], sizes, labels, np.arange(count) % 3, np.arange(count), features
    )


NOTHING = np.zeros((0, 4), bool)


def extra(allowed=NOTHING) -> Extra:
    count = len(allowed)
    return Extra(PIXELS[:count, :, :, 0], np.full((count, 2), 64), allowed)


def epoch_of(batches):
    return [np.concatenate(field) for field in zip(*(batches[i] for i in range(len(batches))), strict=True)]


def test_batches_hold_each_image_once_and_change_with_the_epoch_alone():
    params = small_params(train__batch_size=7)
    weights = np.array([1, 2, 3, 4], np.float32)
    batches, again = (Batches(pool(), extra(), weights, params) for _ in range(2))
    first, same = epoch_of(batches), epoch_of(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert first[1].sum(axis=0) == pytest.approx([6, 6, 6, 6])
    assert np.array_equal(first[2], weights[first[1].argmax(axis=1)])
    batches.on_epoch_end()
    assert not np.array_equal(epoch_of(batches)[0], first[0])


def test_oversampling_shows_every_class_as_often_as_the_largest():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 2 + [3])
    params = small_params(train__balance="oversample")
    _, one_hot, _ = epoch_of(Batches(pool(labels), extra(), np.ones(4, np.float32), params))
    assert one_hot.sum(axis=0) == pytest.approx([9, 9, 9, 9])


def test_mixed_precision_applies_to_training_only(prepared):
    part = pool()
    fitted = []
    for mixed in (False, True):
        params = small_params(train__epochs=2, train__head_epochs=0, train__mixed_precision=mixed)
        base_model(params)
        fitted.append(fit(part, extra(), None, params, "test")[0])
    single, mixed = fitted
    assert [layer.compute_dtype for layer in mixed.layers] == [layer.compute_dtype for layer in single.layers]
    difference = np.abs(single.predict(part.pixels, verbose=0) - mixed.predict(part.pixels, verbose=0)).max()
    assert 0 < difference < 0.1


def test_training_takes_all_epochs_and_measures_the_held_out_images(prepared, capsys):
    params = small_params(train__epochs=3, train__learning_rate=1.0, train__head_epochs=1)
    base_model(params)
    part = pool()
    told = []
    network, history = fit(part, extra(), part, params, "test", on_epoch=lambda *told_: told.append(told_))
    assert [(epoch, dict(logs)) for epoch, logs in told] == list(enumerate(history, 1))
    assert f"{params.train.epochs}/{params.train.epochs}" in capsys.readouterr().err.splitlines()[-1], "epoch of epochs"
    assert len(history) == 3, "a rising loss ends nothing, so nothing is chosen by held-out images"
    assert set(history[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    network.save("trained.keras")
    assert keras.models.load_model("trained.keras").output_shape == (None, 4), "without the code of its loss"


def test_the_result_is_the_running_mean_of_the_weights(prepared):
    params = small_params(train__epochs=2, train__learning_rate=0.1, train__head_epochs=0)
    base_model(params)
    kernels = {}
    for averaging in (0, 0.5, 0.999):
        network, _ = fit(pool(), extra(), None, params.changed({"train.averaging": averaging}), "test")
        kernels[averaging] = network.get_layer(LOGITS).get_weights()[0]
    start = build(params).get_layer(LOGITS).get_weights()[0]
    moved = {averaging: np.abs(kernel - start).mean() for averaging, kernel in kernels.items()}
    assert moved[0.999] < moved[0.5] < moved[0]


def test_images_of_other_sources_are_in_every_epoch_with_the_classes_they_may_have():
    allowed = np.array([[True, True, False, True], [False, False, True, False]])
    params = small_params(train__batch_size=7)
    _, targets, weights = epoch_of(Batches(pool(), extra(allowed), np.full(4, 2, np.float32), params))
    assert targets.sum(axis=0) == pytest.approx([7, 7, 7, 7])
    assert sorted(weights) == [1, 1, *[2] * 24]
    assert (targets.sum(axis=1) == 3).sum() == 1


def test_the_loss_of_a_partial_label_is_of_the_summed_probability():
    logits = RNG.normal(size=(1, 4)).astype(np.float32)
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
    loss = make_loss(small_params(train__label_smoothing=0))
    assert float(loss(np.float32([[1, 1, 0, 1]]), logits)[0]) == pytest.approx(-np.log(1 - probabilities[2]), rel=1e-5)


def test_the_loss_of_a_whole_label_is_the_cross_entropy_with_label_smoothing():
    logits, target = RNG.normal(size=(5, 4)).astype(np.float32), np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=None)(
        target, logits
    )
    assert np.allclose(make_loss(small_params(train__label_smoothing=0.1))(target, logits), expected, atol=1e-5)


def test_an_answer_is_right_if_the_image_may_have_that_class():
    allowed = np.float32([[1, 1, 0, 1], [1, 1, 0, 1]])
    assert np.asarray(accuracy(allowed, np.float32([[0, 9, 0, 0], [0, 0, 9, 0]]))).tolist() == [1, 0]
