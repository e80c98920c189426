import numpy as np
import pytest

from pipeline.base_model import base_model
from pipeline.core import paths
from pipeline.network.build import LOGITS, build
from pipeline.network.fitting import Batches, Pool, best_epoch, class_weights, fit, freeze
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


def test_all_folds_share_one_best_epoch():
    histories = [[{"val_loss": loss} for loss in fold] for fold in ([3, 1, 2, 9], [3, 4, 2, 9, 0], [1, 2, 1.5, 9])]
    assert best_epoch(histories) == 3


def test_an_epoch_in_which_a_fold_diverged_is_not_the_best():
    nan = float("nan")
    histories = [[{"val_loss": loss} for loss in fold] for fold in ([nan, 3, 2, 1], [1, 3, 2, nan])]
    assert best_epoch(histories) == 3
    assert best_epoch([[{"val_loss": nan}] * 2]) == 1


def pool(labels=LABELS) -> Pool:
    count = len(labels)
    features = RNG.normal(size=(count, 96)).astype(np.float32)
    return Pool(PIXELS[:count], labels, np.arange(count) % 3, np.arange(count), features)


def epoch_of(batches):
    return [np.concatenate(field) for field in zip(*(batches[i] for i in range(len(batches))), strict=True)]


def test_batches_hold_each_image_once_and_change_with_the_epoch_alone():
    params = small_params(train__batch_size=7)
    weights = np.array([1, 2, 3, 4], np.float32)
    batches, again = (Batches(pool(), weights, params) for _ in range(2))
    first, same = epoch_of(batches), epoch_of(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert first[1].sum(axis=0) == pytest.approx([6, 6, 6, 6])
    assert np.array_equal(first[2], weights[first[1].argmax(axis=1)])
    batches.on_epoch_end()
    assert not np.array_equal(epoch_of(batches)[0], first[0])


def test_oversampling_shows_every_class_as_often_as_the_largest():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 2 + [3])
    params = small_params(train__balance="oversample")
    _, one_hot, _ = epoch_of(Batches(pool(labels), np.ones(4, np.float32), params))
    assert one_hot.sum(axis=0) == pytest.approx([9, 9, 9, 9])


def test_mixed_precision_applies_to_training_only(prepared):
    part = pool()
    fitted = []
    for mixed in (False, True):
        params = small_params(train__epochs=2, train__head_epochs=0, train__mixed_precision=mixed)
        base_model(params)
        fitted.append(fit(part, None, params, "test")[0])
    single, mixed = fitted
    assert [layer.compute_dtype for layer in mixed.layers] == [layer.compute_dtype for layer in single.layers]
    difference = np.abs(single.predict(part.pixels, verbose=0) - mixed.predict(part.pixels, verbose=0)).max()
    assert 0 < difference < 0.1


def test_training_stops_early_and_keeps_every_epochs_weights(prepared):
    params = small_params(train__epochs=6, train__patience=1, train__learning_rate=1.0, train__head_epochs=1)
    base_model(params)
    part = pool()
    network, history = fit(part, part, params, "test", checkpoints=prepared)
    assert len(history) < 6, "with so high a rate the held-out loss can't fall six times in a row"
    assert set(history[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(list(prepared.glob("*.weights.h5"))) == len(history)
    assert network.output_shape == (None, 4)
