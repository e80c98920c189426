"""The backbones that a model can be built on. Each turns scaled pixels into a feature map."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import keras
from keras import layers

from pipeline.core.errors import StageError
from pipeline.network.lite0_weights import load_imagenet_weights

Tensor = Any
"""A symbolic Keras tensor. Keras ships no types."""


class Backbone(NamedTuple):
    """A network without its head, and how it expects its pixels."""

    scale: float
    offset: float | tuple[float, float, float]
    """Offset of all channels, or of each. A channel's input is `grey * scale + offset`."""
    build: Callable[[Tensor, str | None], Tensor]
    """Takes the scaled pixels [N, H, W, 3] and the weights; returns the feature map [N, h, w, F]."""
    equal_channels: bool = True
    """Whether the first convolution sees three equal channels, so that one channel can replace them."""


def _application(name: str) -> Callable[[Tensor, str | None], Tensor]:
    """Return the `build` of a network in keras.applications."""

    def build(pixels: Tensor, weights: str | None) -> Tensor:
        application = getattr(keras.applications, name)
        if weights != "imagenet":
            network = application(include_top=False, weights=None, input_tensor=pixels)
            if weights is not None:
                _load(network, weights, name)
            return network.output
        try:
            return application(include_top=False, weights=weights, input_tensor=pixels).output
        except Exception as error:
            raise StageError(
                f"base_model.weights: the ImageNet weights of {name} can't be downloaded ({error}); "
                "give a .weights.h5 file as PATH@sha256:DIGEST or choose the backbone efficientnet_lite0"
            ) from error

    return build


def _load(network: keras.Model, weights: str, name: str) -> None:
    """Load a weights file that Keras saved, named as `PATH@sha256:DIGEST`.

    Raises StageError if the file is missing, has another digest, is damaged or holds another network's weights.
    """
    path, _, wanted = weights.rpartition("@sha256:")
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise StageError(f"base_model.weights: {path}: {error.strerror}") from error
    if digest != wanted:
        raise StageError(f"base_model.weights: {path} has the SHA-256 {digest}, not {wanted}; name the one you mean")
    try:
        network.load_weights(path)
    except Exception as error:  # Keras and h5py raise many kinds of errors for a damaged file
        reason = " ".join(str(error).split())
        raise StageError(
            f"base_model.weights: {path} does not hold the weights of {name} without its top: {reason[:200]}"
        ) from error


def _small(pixels: Tensor, weights: str | None) -> Tensor:
    """Four convolutions that train from scratch in seconds, for phantoms and tests."""
    if weights is not None:
        raise StageError(f"base_model.weights: the backbone small starts from none, got {weights}")
    x = pixels
    for filters in (16, 32, 64, 96):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return x


_LITE0_STAGES: Final = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Stages of EfficientNet-B0: expansion, filters, blocks, stride of the first block, kernel size."""


def _efficientnet_lite0(pixels: Tensor, weights: str | None) -> Tensor:
    """EfficientNet-Lite0 (Google, 2020): B0 without squeeze-excite, with ReLU6.

    The layers have the names of its ImageNet weights.
    """

    def convolution(x: Tensor, name: str, filters: int, kernel: int, stride: int = 1) -> Tensor:
        return layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)

    def normalisation(x: Tensor, name: str, *, activate: bool = True) -> Tensor:
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(max_value=6)(x) if activate else x

    x = normalisation(convolution(pixels, "conv_stem", 32, 3, 2), "bn0")
    block = 0
    for expansion, filters, repeats, first_stride, kernel in _LITE0_STAGES:
        for repeat in range(repeats):
            name, shortcut, stride = f"blocks_{block}", x, first_stride if repeat == 0 else 1
            if expansion > 1:
                x = convolution(x, f"{name}_expand_conv", x.shape[-1] * expansion, 1)
                x = normalisation(x, f"{name}_bn0")
            x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(x)
            x = normalisation(x, f"{name}_bn1")
            x = normalisation(convolution(x, f"{name}_project_conv", filters, 1), f"{name}_bn2", activate=False)
            if repeat > 0:
                x = layers.Add()([shortcut, x])
            block += 1
    x = normalisation(convolution(x, "conv_head", 1280, 1), "bn1")
    if weights == "imagenet":
        load_imagenet_weights(keras.Model(pixels, x))
    elif weights is not None:
        _load(keras.Model(pixels, x), weights, "efficientnet_lite0")
    return x


BACKBONES: Final = {
    "vgg16": Backbone(1.0, (-103.939, -116.779, -123.68), _application("VGG16"), equal_channels=False),
    "resnet50v2": Backbone(1 / 127.5, -1.0, _application("ResNet50V2")),
    "mobilenet_v2": Backbone(1 / 127.5, -1.0, _application("MobileNetV2")),
    # It scales its channels by itself, each in its own way.
    "efficientnetv2_b0": Backbone(1.0, 0.0, _application("EfficientNetV2B0"), equal_channels=False),
    "efficientnet_lite0": Backbone(1 / 128, -127 / 128, _efficientnet_lite0),
    "small": Backbone(1 / 127.5, -1.0, _small),
}
"""The backbones by their name in params.yaml."""
