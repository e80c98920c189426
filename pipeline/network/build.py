"""The network: a backbone, the global average of its feature map, dropout and one dense layer."""

from typing import Any, Final

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core.params import Params
from pipeline.images.classes import class_count
from pipeline.network.backbones import BACKBONES

CHANNELS: Final = "channels"
"""Name of the layer that copies the grey channel into the three that backbones take."""
FEATURES: Final = "features"
"""Name of the layer that averages the feature map. Its output is the features, float32 [N, F]."""
LOGITS: Final = "logits"
"""Name of the dense layer."""
_BATCH: Final = 32


def build(params: Params) -> keras.Model:
    """Build the network with a new head. It takes pixels uint8 [N, S, S, 1] and gives logits float32 [N, classes].

    With pretrained weights the batch norms are frozen, because the data set is too small to learn them.

    Raises StageError if the weights are missing or belong to another network.
    """
    choice = params.base_model
    backbone = BACKBONES[choice.backbone]
    weights = None if choice.weights == "none" else choice.weights
    size = params.prepare.image_size

    pixels = keras.Input((size, size, 1), dtype="uint8", name="pixels")
    grey = layers.Rescaling(1.0, name="grey")(pixels)
    channels = layers.Concatenate(name=CHANNELS)([grey, grey, grey])
    scaled = layers.Rescaling(backbone.scale, backbone.offset, name="scaled")(channels)
    maps = backbone.build(scaled, weights)
    features = layers.GlobalAveragePooling2D(name=FEATURES)(maps)
    dropped = layers.Dropout(choice.dropout, seed=params.seed, name="dropout")(features)
    initial = keras.initializers.GlorotUniform(seed=params.seed)
    logits = layers.Dense(class_count(), kernel_initializer=initial, name=LOGITS)(dropped)
    network = keras.Model(pixels, logits, name=choice.backbone)
    if weights is not None:
        for layer in network.layers:
            layer.trainable = not isinstance(layer, layers.BatchNormalization)
    return network


def features_of(network: keras.Model, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features [N, F] of pixels uint8 [N, S, S, 1]."""
    extractor = keras.Model(network.input, network.get_layer(FEATURES).output)
    (features,) = predict(extractor, pixels, "features")
    return features


def predict(network: keras.Model, pixels: NDArray[np.uint8], what: str) -> list[NDArray[np.float32]]:
    """Return each output [N, ...] of pixels uint8 [N, S, S, 1]; `what` is the progress bar's text."""
    parts = list[list[Any]]()
    for start in tqdm(range(0, len(pixels), _BATCH), desc=what, unit="batch"):
        found = network.predict_on_batch(pixels[start : start + _BATCH])
        parts.append(found if isinstance(found, list) else [found])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]
