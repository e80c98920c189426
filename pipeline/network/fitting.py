"""Training of one network: first its head on cached features, then all of it on augmented images."""

import math
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.network.augmentation import augment
from pipeline.network.build import LOGITS

History = list[dict[str, float]]
"""One row per epoch: loss and accuracy, and val_loss and val_accuracy if images were held out."""


class Pool(NamedTuple):
    """N images of train and valid."""

    pixels: NDArray[np.uint8]
    """[N, S, S, 1]"""
    labels: NDArray[np.int64]
    """Index of the class, [N]."""
    folds: NDArray[np.int64]
    """Index of the fold, [N]."""
    clusters: NDArray[np.int64]
    """Index of the cluster of similar slices, [N]."""
    features: NDArray[np.float32]
    """Features by the untrained network, [N, F]."""

    @classmethod
    def read(cls) -> "Pool":
        """Read POOL and FEATURES. Raises DataError if one is missing."""
        try:
            with np.load(paths.POOL) as file, np.load(paths.FEATURES) as cached:
                return Pool(file["pixels"], file["labels"], file["folds"], file["clusters"], cached["features"])
        except FileNotFoundError as error:
            raise DataError(f"no {error.filename}; `dvc repro base_model` makes it") from error

    def take(self, chosen: NDArray[np.bool_]) -> "Pool":
        """Return the images for which `chosen`, bool [N], is true."""
        return Pool(**{name: array[chosen] for name, array in self._asdict().items()})


def fit_fold(
    pool: Pool, fold: int, params: Params, name: str, *, checkpoints: Path, base: Path = paths.BASE_MODEL
) -> History:
    """Train a network on all folds but `fold`, as `fit` does. `load_epoch` reads its weights from `checkpoints`."""
    folder = checkpoints / f"fold{fold}"
    folder.mkdir()
    learned, held_out = pool.take(pool.folds != fold), pool.take(pool.folds == fold)
    return fit(learned, held_out, params, name, checkpoints=folder, base=base)[1]


def load_epoch(network: keras.Model, checkpoints: Path, fold: int, epoch: int) -> None:
    """Load the weights that the network of `fold` had after that epoch, counted from 1."""
    network.load_weights(checkpoints / f"fold{fold}" / f"{epoch:03d}.weights.h5")


def fit(
    part: Pool,
    held_out: Pool | None,
    params: Params,
    name: str,
    *,
    epochs: int | None = None,
    checkpoints: Path | None = None,
    base: Path = paths.BASE_MODEL,
) -> tuple[keras.Model, History]:
    """Train the network saved at `base` on `part`. Return it after its last epoch, with its history.

    With `held_out`, training stops early by the loss on that part. `epochs` shortens the training without changing
    the schedule of the learning rate. `checkpoints` is a folder for the weights of each epoch. `name` labels the
    progress bar.
    """
    settings = params.train
    keras.utils.set_random_seed(params.seed)
    network = keras.models.load_model(base, compile=False)
    weights = class_weights(part.labels) if settings.balance == "weights" else np.ones(len(CLASSES), np.float32)
    _fit_head(network, part, weights, params)

    freeze(network, params)
    _compute_in(network, "mixed_bfloat16" if settings.mixed_precision else "float32")
    batches = Batches(part, weights, params)
    _compile(network, params, steps_per_epoch=len(batches))
    epochs = epochs or settings.epochs
    callbacks: list[keras.callbacks.Callback] = []
    if held_out is not None:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=settings.patience))
    if checkpoints is not None:
        callbacks.append(
            keras.callbacks.ModelCheckpoint(checkpoints / "{epoch:03d}.weights.h5", save_weights_only=True, verbose=0)
        )
    with tqdm(total=epochs, desc=name, unit="epoch") as bar:

        def advance(_: int, logs: dict[str, float]) -> None:
            bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
            bar.update()

        result = network.fit(
            batches,
            epochs=epochs,
            validation_data=None if held_out is None else (held_out.pixels, one_hot(held_out.labels)),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=advance), *callbacks],
            verbose=0,
        )
    _compute_in(network, "float32")
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
    head.compile(keras.optimizers.Adam(settings.head_learning_rate), _loss(params))
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
    optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, global_clipnorm=settings.gradient_clip)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    network.compile(optimizer, _loss(params), weighted_metrics=[], metrics=["accuracy"])


def _loss(params: Params) -> keras.losses.Loss:
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=params.train.label_smoothing)


def class_weights(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the weight of an image by class, [classes]. All classes weigh the same; an image weighs 1 on average."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    return (len(labels) / (len(CLASSES) * counts)).astype(np.float32)


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Augmented training batches. The seed decides the order and the changes of every epoch.

    A batch is the pixels uint8 [B, S, S, 1], the one-hot labels float32 [B, classes], and the weights float32 [B].
    """

    def __init__(self, part: Pool, weights: NDArray[np.float32], params: Params) -> None:
        super().__init__()
        self._part = part
        self._weights = weights
        self._params = params
        self._epoch = 0
        self._order = self._shuffled()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._params.train.batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        size = self._params.train.batch_size
        chosen = self._order[index * size : (index + 1) * size]
        rng = np.random.default_rng((self._params.seed, self._epoch, index))
        labels = self._part.labels[chosen]
        pixels = augment(self._part.pixels[chosen], self._params.train.augment, rng)
        return pixels, one_hot(labels), self._weights[labels]

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._order = self._shuffled()

    def _shuffled(self) -> NDArray[np.int64]:
        """Return the order of the images. Oversampling repeats images until every class is as large as the largest."""
        rng = np.random.default_rng((self._params.seed, self._epoch))
        labels = self._part.labels
        if self._params.train.balance != "oversample":
            return rng.permutation(len(labels))
        largest = np.bincount(labels).max()
        rows = [np.resize(rng.permutation(np.flatnonzero(labels == c)), largest) for c in range(len(CLASSES))]
        return rng.permutation(np.concatenate(rows))


def best_epoch(histories: list[History]) -> int:
    """Return the epoch, counted from 1, with the lowest val_loss summed over the folds.

    Only epochs that every fold reached count. A fold that diverged has NaN from then on, and such an epoch is the best
    only if there is no other.
    """
    losses = [[row["val_loss"] for row in history] for history in histories]
    sums = np.array([sum(epoch) for epoch in zip(*losses, strict=False)])
    return int(np.where(np.isnan(sums), np.inf, sums).argmin()) + 1
