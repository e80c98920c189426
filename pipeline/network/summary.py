"""What the probe "is it a chest CT" looks at: a picture summed up by its network.

The features alone forget what they don't need to tell cancers apart, such as where the lungs are. So the summary also
holds earlier maps and the picture itself, coarse.
"""

from typing import Any, Final

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from pipeline.network.build import FEATURES, predict

COARSE: Final = 16
"""Rows and columns of the coarse picture."""
EARLIER: Final = (8, 16)
"""Sides of the earlier maps: the picture's side by these."""


def inputs_of(network: keras.Model) -> list[Any]:
    """The tensors [N, h, w, F] that are summed up: pixels, the last map of each of EARLIER's sides, the feature map."""
    side = network.input.shape[1]
    last = {layer.output.shape[1]: layer.output for layer in network.layers if len(layer.output.shape) == 4}
    earlier = [last[side // each] for each in EARLIER if side // each in last]
    return [network.input, *earlier, network.get_layer(FEATURES).input]


def sum_up(pixels: Any, *maps: Any) -> Any:
    """The summary float32 [N, P] of what `inputs_of` names, the same in the graph and in Keras.

    The coarse picture in shares of white around a dark grey, and for each map its mean and, but for the feature map,
    its maximum, each scaled to length 1.
    """
    size = pixels.shape[1] // COARSE
    coarse = ops.average_pool(ops.cast(pixels, "float32") / 255 - 0.4, size, size)
    parts = [ops.reshape(0.2 * coarse, (-1, coarse.shape[1] * coarse.shape[2]))]
    for each in maps[:-1]:
        parts += [_unit(ops.mean(each, axis=(1, 2))), _unit(ops.max(each, axis=(1, 2)))]
    return ops.concatenate([*parts, _unit(ops.mean(maps[-1], axis=(1, 2)))], axis=1)


def _unit(rows: Any) -> Any:
    return rows / ops.maximum(ops.sqrt(ops.sum(ops.square(rows), axis=1, keepdims=True)), 1e-6)


class Summary(keras.layers.Layer):  # type: ignore[misc]
    """`sum_up` as a layer on `inputs_of`."""

    def call(self, inputs: list[Any]) -> Any:
        return sum_up(*inputs)


def summaries_of(network: keras.Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The summaries [N, P] of pixels uint8 [N, S, S, 1]."""
    (summaries,) = predict(keras.Model(network.input, Summary()(inputs_of(network))), pixels, "summaries")
    return summaries
