"""Stage base_model: build the network that training starts from, and cache its frozen features."""

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core import paths, runner
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.network.backbones import BACKBONES

FEATURES = "features"
LOGITS = "logits"
"""Names of the layers between which the head lies: global average pooling, then dropout and one dense layer."""


def base_model(params: Params) -> None:
    """Write BASE_MODEL (pixels uint8 [N, S, S, 1] to logits float32 [N, classes]) and FEATURES (float32 [N, F])."""
    keras.utils.set_random_seed(params.seed)
    network = build(params)
    paths.BASE_MODEL.parent.mkdir(parents=True, exist_ok=True)
    network.save(paths.BASE_MODEL)
    with np.load(paths.POOL) as pool:
        pixels = pool["pixels"]
    np.savez(paths.FEATURES, features=features_of(network, pixels))
    print(f"{params.base_model.backbone}: {network.count_params():,} parameters, features of {len(pixels)} images")


def build(params: Params) -> keras.Model:
    """The network with a new head. With pretrained weights the batch norms stay as they are: the data are too few.

    Raises StageError where the weights can't be had or are another network's.
    """
    choice = params.base_model
    backbone = BACKBONES[choice.backbone]
    weights = None if choice.weights == "none" else choice.weights
    size = params.prepare.image_size

    pixels = keras.Input((size, size, 1), dtype="uint8", name="pixels")
    grey = layers.Rescaling(1.0, name="grey")(pixels)
    channels = layers.Concatenate(name="channels")([grey, grey, grey])
    scaled = layers.Rescaling(backbone.scale, backbone.offset, name="scaled")(channels)
    maps = backbone.build(scaled, weights)
    features = layers.GlobalAveragePooling2D(name=FEATURES)(maps)
    dropped = layers.Dropout(choice.dropout, seed=params.seed, name="dropout")(features)
    initial = keras.initializers.GlorotUniform(seed=params.seed)
    logits = layers.Dense(len(CLASSES), kernel_initializer=initial, name=LOGITS)(dropped)
    network = keras.Model(pixels, logits, name=choice.backbone)
    if weights is not None:
        for layer in network.layers:
            layer.trainable = not isinstance(layer, layers.BatchNormalization)
    return network


def compile_for(network: keras.Model, params: Params, steps_per_epoch: int) -> None:
    """AdamW, a linear warm-up and a cosine down to zero; cross-entropy with label smoothing."""
    settings = params.train
    warmup = settings.warmup_epochs * steps_per_epoch
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else settings.learning_rate,
        max(settings.epochs * steps_per_epoch - warmup, 1),
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, global_clipnorm=settings.gradient_clip)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    network.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing),
        weighted_metrics=[],
        metrics=["accuracy"],
    )


def features_of(network: keras.Model, pixels: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
    """float32 [N, F]: what the head sees of uint8 [N, S, S, 1]."""
    extractor = keras.Model(network.input, network.get_layer(FEATURES).output)
    starts = tqdm(range(0, len(pixels), batch_size), desc="features", unit="batch")
    return np.concatenate([extractor.predict_on_batch(pixels[start : start + batch_size]) for start in starts])


def main() -> None:
    runner.run(base_model)


if __name__ == "__main__":
    main()
