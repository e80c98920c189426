"""Training of one network: first its head on cached features, then all of it on augmented images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from chestct.standard_picture import find_body
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images.classes import class_count
from pipeline.network.augmentation import Source, augment
from pipeline.network.build import LOGITS

History = list[dict[str, float]]
"""One row per epoch: loss and accuracy, and val_loss and val_accuracy if images were held out."""
OnEpoch = Callable[[int, dict[str, float]], None]
"""Called after each epoch with its number, counted from 1, and its row of the history."""


class Pool(NamedTuple):
    """N images of train and valid."""

    pixels: NDArray[np.uint8]
    """[N, S, S, 1], the standard pictures."""
    sources: NDArray[np.uint8]
    """[N, P, P], the pictures as they came, shrunk into P x P at the top left."""
    source_sizes: NDArray[np.int64]
    """[N, 2], width and height of each picture in `sources`."""
    labels: NDArray[np.int64]
    """Index of the class, [N]."""
    folds: NDArray[np.int64]
    """Index of the fold, [N]."""
    scans: NDArray[np.int64]
    """Index of the scan, [N]."""
    features: NDArray[np.float32]
    """Features by the untrained network, [N, F]."""

    @classmethod
    def read(cls) -> "Pool":
        """Read POOL and FEATURES. Raises DataError if one is missing."""
        names = [name for name in cls._fields if name != "features"]
        try:
            with np.load(paths.POOL) as file, np.load(paths.FEATURES) as cached:
                return Pool(**{name: file[name] for name in names}, features=cached["features"])
        except FileNotFoundError as error:
            raise DataError(f"no {error.filename}; `dvc repro base_model` makes it") from error

    def take(self, chosen: NDArray[np.bool_]) -> "Pool":
        """Return the images for which `chosen`, bool [N], is true."""
        return Pool(**{name: array[chosen] for name, array in self._asdict().items()})


class Extra(NamedTuple):
    """M images of other sources, of which only a part of the label is known. Networks learn from them too."""

    sources: NDArray[np.uint8]
    """[M, P, P], as in Pool."""
    source_sizes: NDArray[np.int64]
    """[M, 2], as in Pool."""
    allowed: NDArray[np.bool_]
    """[M, classes], the classes that the image may have: all cancers for `any cancer`."""

    @classmethod
    def read(cls) -> "Extra":
        """Read EXTRA. Raises DataError if it is missing."""
        try:
            with np.load(paths.EXTRA) as file:
                return Extra(**{name: file[name] for name in cls._fields})
        except FileNotFoundError as error:
            raise DataError(f"no {error.filename}; `dvc repro prepare` makes it") from error


def fit_fold(
    pool: Pool, extra: Extra, fold: int, params: Params, name: str, **options: Any
) -> tuple[keras.Model, History]:
    """Train a network on all folds but `fold`, as `fit` does with `options`."""
    return fit(pool.take(pool.folds != fold), extra, pool.take(pool.folds == fold), params, name, **options)


def fit(
    part: Pool,
    extra: Extra,
    held_out: Pool | None,
    params: Params,
    name: str,
    *,
    base: Path = paths.BASE_MODEL,
    on_epoch: OnEpoch = lambda *_: None,
) -> tuple[keras.Model, History]:
    """Train the network saved at `base` on `part` and `extra`. Return it after its last epoch, with its history.

    The weights are the running mean of those of the last steps. No epoch is chosen: `held_out` is only measured, for
    the history. `name` labels the progress bar.
    """
    settings = params.train
    keras.utils.set_random_seed(params.seed)
    network = keras.models.load_model(base, compile=False)
    weights = class_weights(part.labels) if settings.balance == "weights" else np.ones(class_count(), np.float32)
    _fit_head(network, part, weights, params)

    freeze(network, params)
    _compute_in(network, "mixed_bfloat16" if settings.mixed_precision else "float32")
    batches = Batches(part, extra, weights, params)
    _compile(network, params, steps_per_epoch=len(batches))
    with tqdm(total=settings.epochs * len(batches), desc=name, unit="batch", mininterval=1) as bar:

        def advance(epoch: int, logs: dict[str, float]) -> None:
            shown = {name: f"{value:.3f}" for name, value in logs.items()}
            bar.set_postfix({"epoch": f"{epoch + 1}/{settings.epochs}", **shown}, refresh=False)
            on_epoch(epoch + 1, logs)

        result = network.fit(
            batches,
            epochs=settings.epochs,
            validation_data=None if held_out is None else (held_out.pixels, one_hot(held_out.labels)),
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_end=advance, on_train_batch_end=lambda _, logs: bar.update())
            ],
            verbose=0,
        )
    _compute_in(network, "float32")
    network.compiled = False  # so it is saved without its loss, which only this code can load
    rows = zip(*result.history.values(), strict=True)
    return network, [dict(zip(result.history, map(float, row), strict=True)) for row in rows]


def _fit_head(network: keras.Model, part: Pool, weights: NDArray[np.float32], params: Params) -> None:
    """Train the dense layer alone, on the cached features."""
    settings = params.train
    if settings.head_epochs == 0:
        return
    features = keras.Input(part.features.shape[1:])
    dropped = keras.layers.Dropout(params.base_model.dropout, seed=params.seed)(features)
    head = keras.Model(features, network.get_layer(LOGITS)(dropped))
    head.compile(keras.optimizers.Adam(settings.head_learning_rate), make_loss(params))
    head.fit(
        part.features,
        one_hot(part.labels),
        sample_weight=weights[part.labels],
        batch_size=settings.batch_size,
        epochs=settings.head_epochs,
        verbose=0,
    )


def freeze(network: keras.Model, params: Params) -> None:
    """Freeze the first layers of a pretrained backbone and, if the parameters say so, its depthwise kernels.

    Their edges and textures come from a million photographs, and a step gets faster.
    """
    if params.base_model.weights == "none":
        return
    settings = params.train
    backbone = [
        layer
        for layer in network.layers
        if layer.weights and layer.name != LOGITS and not isinstance(layer, keras.layers.BatchNormalization)
    ]
    first = round(settings.frozen_layers * len(backbone))
    for index, layer in enumerate(backbone):
        if index < first or (settings.frozen_depthwise and isinstance(layer, keras.layers.DepthwiseConv2D)):
            layer.trainable = False


def _compute_in(network: keras.Model, policy: str) -> None:
    """Set the dtype policy of every layer that has weights, except the head. The weights stay float32."""
    for layer in network.layers:
        if layer.weights and layer.name != LOGITS:
            layer.dtype_policy = policy


def _compile(network: keras.Model, params: Params, steps_per_epoch: int) -> None:
    """AdamW; the learning rate rises linearly during warm-up, then falls to zero along a cosine."""
    settings = params.train
    warmup = settings.warmup_epochs * steps_per_epoch
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else settings.learning_rate,
        max(settings.epochs * steps_per_epoch - warmup, 1),
        warmup_target=settings.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        rate,
        weight_decay=settings.weight_decay,
        global_clipnorm=settings.gradient_clip,
        use_ema=settings.averaging > 0,
        ema_momentum=settings.averaging,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    network.compile(optimizer, make_loss(params), weighted_metrics=[], metrics=[accuracy])


def make_loss(params: Params) -> Any:
    """Cross-entropy of the summed probabilities of the classes that an image may have, with label smoothing."""
    smoothing = params.train.label_smoothing

    def loss(allowed: Any, logits: Any) -> Any:
        log_probabilities = ops.log_softmax(logits)
        known = -ops.logsumexp(ops.where(allowed > 0, log_probabilities, -1e9), axis=-1)
        return (1 - smoothing) * known - smoothing * ops.mean(log_probabilities, axis=-1)

    return loss


def accuracy(allowed: Any, logits: Any) -> Any:
    """Whether the most probable class is one that the image may have."""
    return ops.sum(allowed * ops.one_hot(ops.argmax(logits, axis=-1), class_count()), axis=-1)


def class_weights(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the weight of an image by class, [classes]. All classes weigh the same; an image weighs 1 on average."""
    counts = np.bincount(labels, minlength=class_count())
    return (len(labels) / (class_count() * counts)).astype(np.float32)


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(class_count(), dtype=np.float32)[labels]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Augmented training batches. The seed decides the order and the changes of every epoch.

    A batch is the pixels uint8 [B, S, S, 1], the classes that an image may have float32 [B, classes], and the weights
    float32 [B].
    """

    def __init__(self, part: Pool, extra: Extra, weights: NDArray[np.float32], params: Params) -> None:
        super().__init__()
        self._labels = part.labels
        self._side = part.pixels.shape[1]
        self._sources = [
            source_of(*each)
            for images in (part, extra)
            for each in zip(images.sources, images.source_sizes, strict=True)
        ]
        self._allowed = np.concatenate([one_hot(part.labels), extra.allowed.astype(np.float32)])
        self._weights = np.append(weights[part.labels], np.ones(len(extra.allowed), np.float32))
        self._params = params
        self._epoch = 0
        self._order = self._shuffled()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._params.train.batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        size = self._params.train.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        rng = np.random.default_rng((self._params.seed, self._epoch, index))
        pixels = [augment(self._sources[row], self._params.train.augment, self._side, rng) for row in chosen]
        return np.stack(pixels), self._allowed[chosen], self._weights[chosen]

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._shuffled()

    def _shuffled(self) -> NDArray[np.int64]:
        """Return the order of the images. Oversampling repeats images until every class is as large as the largest."""
        rng = np.random.default_rng((self._params.seed, self._epoch))
        if self._params.train.balance != "oversample":
            return rng.permutation(len(self._sources))
        largest = np.bincount(self._labels).max()
        rows = [np.resize(rng.permutation(np.flatnonzero(self._labels == c)), largest) for c in range(class_count())]
        return rng.permutation(np.concatenate([*rows, np.arange(len(self._labels), len(self._sources))]))


def source_of(picture: NDArray[np.uint8], size: NDArray[np.int64]) -> Source:
    """One of the `sources` and `source_sizes` of Pool, with the body in it."""
    grey = Image.fromarray(picture[: size[1], : size[0]])
    return Source(grey, find_body(grey))
