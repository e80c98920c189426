"""Trains and exports every backbone, serves VGG16, and checks errors about weights files."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import keras
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from chestct.engine import Engine
from chestct.image import decode, encode_png
from chestct.store import CARD, GRAPH
from pipeline.base_model import base_model
from pipeline.core import paths, runner
from pipeline.core.params import Params
from pipeline.graph.rounding import with_float16_weights
from pipeline.graph.to_onnx import serving_graph
from pipeline.images.phantoms import draw_phantom
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import UNFITTED
from pipeline.network.backbones import BACKBONES
from pipeline.network.build import LOGITS, build
from pipeline.network.fitting import Extra, Pool, fit
from tests.graphs import input_channels, tiny_card
from tests.pipeline.conftest import write_pool
from tests.server import import_model, serve

SIZE = 32
WriteParams = Callable[[dict[str, Any]], Params]

TINY = tiny_card(size=SIZE)
CALIBRATION = Calibration(scaling=TINY.scaling, thresholds=TINY.thresholds, input_limits=TINY.input_limits)


def phantoms() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [8, SIZE, SIZE, 1] and their labels."""
    labels = np.arange(8) % 4
    rng = np.random.default_rng(0)
    pictures = [draw_phantom(label, rng).convert("L").resize((SIZE, SIZE)) for label in labels]
    return np.stack([np.asarray(picture)[..., np.newaxis] for picture in pictures]), labels


def trained_graph(params: Params) -> tuple[keras.Model, onnx.ModelProto]:
    """Train a network for one step on phantoms. Return it and its graph."""
    pixels, labels = phantoms()
    write_pool(pixels, labels, np.arange(8) % 2)
    base_model(params)
    network, history = fit(Pool.read(), Extra.read(), None, params, params.base_model.backbone)
    assert np.isfinite(history[0]["loss"])
    return network, serving_graph(network, pixels, labels, CALIBRATION, params, UNFITTED)


def one_step(backbone: str) -> dict[str, Any]:
    return {
        "prepare.image_size": SIZE,
        "base_model.backbone": backbone,
        "base_model.weights": "none",
        "train.epochs": 1,
        "train.warmup_epochs": 0,
        "train.head_epochs": 0,
        "train.batch_size": 8,
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "channels"),
    [("resnet50v2", 1), ("mobilenet_v2", 1), ("efficientnetv2_b0", 3), ("efficientnet_lite0", 1), ("small", 1)],
)
def test_a_backbone_trains_and_exports_to_the_same_logits(
    backbone: str, channels: int, write_params: WriteParams, workspace: Path
) -> None:
    params = write_params(one_step(backbone))
    network, graph = trained_graph(params)
    assert input_channels(graph) == channels
    onnx.save(graph, workspace / "model.onnx")
    scores = Engine(workspace / "model.onnx", batch_sizes=(8,)).infer(phantoms()[0])
    expected = network.predict_on_batch(phantoms()[0])
    bias = network.get_layer(LOGITS).get_weights()[1]
    tolerance = params.export.logit_tolerance * max(1, np.abs(expected).max())
    assert scores.heatmaps.mean(axis=(2, 3)) + bias == pytest.approx(expected, abs=tolerance)


@pytest.mark.long
def test_a_vgg16_trains_exports_is_stored_and_served(write_params: WriteParams, workspace: Path) -> None:
    network, graph = trained_graph(write_params(one_step("vgg16")))
    assert input_channels(graph) == 3, "each channel has another offset"
    release = workspace / "release"
    release.mkdir()
    onnx.save(with_float16_weights(graph), release / GRAPH)
    bias = tuple(map(float, network.get_layer(LOGITS).get_weights()[1]))
    digest = hashlib.sha256((release / GRAPH).read_bytes()).hexdigest()
    lineage = TINY.lineage.model_copy(update={"model_sha256": digest})
    TINY.model_copy(update={"logit_bias": bias, "lineage": lineage}).write(release / CARD)
    tag = import_model(workspace / "bentoml", release)

    picture = encode_png(phantoms()[0][0, :, :, 0])
    with serve(workspace / "bentoml", tag) as server:
        answer = httpx.post(f"{server.url}/v1/predict", files={"image": picture}, timeout=300).json()
    logits = network.predict_on_batch(decode(picture, TINY.input).pixels[np.newaxis])[0]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=0.01)
    assert answer["model"] == tag


@pytest.fixture(scope="module")
def weights_of_a_small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    pixels = keras.Input((SIZE, SIZE, 3))
    keras.Model(pixels, BACKBONES["small"].build(pixels, None)).save_weights(path)
    return path


def pinned(path: Path) -> str:
    """Return the name of a weights file in base_model.weights."""
    return f"{path}@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("change", ["replaced", "missing"])
def test_a_weights_file_with_another_digest_or_none_is_refused(
    change: str, write_params: WriteParams, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace / "given.weights.h5"
    path.write_bytes(b"first")
    write_params({**one_step("mobilenet_v2"), "base_model.weights": pinned(path)})
    if change == "replaced":
        path.write_bytes(b"second")
    else:
        path.unlink()
    with pytest.raises(SystemExit) as caught:
        runner.run(base_model)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    first, second = (hashlib.sha256(content).hexdigest() for content in (b"first", b"second"))
    said = {
        "replaced": f"{path} has the SHA-256 {second}, not {first}; name the one you mean",
        "missing": f"{path}: No such file or directory",
    }
    assert line == f"base_model: base_model.weights: {said[change]}"


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_lite0"])
@pytest.mark.parametrize("broken", ["another network's", "cut off", "no weights at all"])
def test_a_file_without_the_backbones_weights_is_named(
    backbone: str,
    broken: str,
    weights_of_a_small_network: Path,
    write_params: WriteParams,
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = workspace / "given.weights.h5"
    content = weights_of_a_small_network.read_bytes()
    contents = {"another network's": content, "cut off": content[: len(content) // 2], "no weights at all": b"PNG"}
    path.write_bytes(contents[broken])
    write_params({**one_step(backbone), "base_model.weights": pinned(path)})
    with pytest.raises(SystemExit) as caught:
        runner.run(base_model)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"base_model: base_model.weights: {path} does not hold the weights of")
    assert not paths.BASE_MODEL.exists()


def test_a_file_with_the_backbones_weights_is_loaded(write_params: WriteParams, workspace: Path) -> None:
    path = workspace / "own.weights.h5"
    pixels = keras.Input((SIZE, SIZE, 3))
    maps = BACKBONES["mobilenet_v2"].build(pixels, None)
    keras.Model(pixels, maps).save_weights(path)
    network = build(write_params({**one_step("mobilenet_v2"), "base_model.weights": pinned(path)}))
    again = BACKBONES["mobilenet_v2"].build(pixels, pinned(path))
    before, after = (keras.Model(pixels, output).get_layer("Conv_1").get_weights() for output in (maps, again))
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(network.get_layer("Conv_1").get_weights()[0], before[0])
