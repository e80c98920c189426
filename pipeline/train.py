"""Stage train: transfer learning and fine-tuning over the folds, then once more on everything.

In each fold the new head learns first, on cached features; then the whole network is fine-tuned on augmented pictures
until the held-out loss stops falling. The best epoch is one number for all folds, the one with the lowest held-out loss
over all of them: a best epoch for each fold would be chosen on the very images it is then judged by. The one number is
too, together with all others, so the figures are a little too good (docs/explanation/evaluation.md). Each fold's
network goes back to its checkpoint of that epoch, is kept and scores its held-out images; the released network is
trained on all images for that many epochs.
"""

import contextlib
import csv
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from pipeline.base_model import LOGITS, compile_for, features_of
from pipeline.core import paths, runner, tracking
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.network.augmentation import augment

History = list[dict[str, float]]
"""An epoch a row: loss and accuracy, and val_loss and val_accuracy where there is a held-out fold."""


class Pool(NamedTuple):
    """The images of train and valid: uint8 [N, S, S, 1], labels and folds int64 [N], frozen features float32 [N, F]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    features: NDArray[np.float32]

    def take(self, where: NDArray[np.bool_]) -> "Pool":
        return Pool(self.pixels[where], self.labels[where], self.folds[where], self.features[where])


def train(params: Params) -> None:
    """Write FOLD_MODELS, OUT_OF_FOLD, FINAL_MODEL, HISTORY and RUN, and log it all as one MLflow run.

    A run that an earlier training in this folder left open, killed or never reported, is closed. What was trained stays
    where MLflow no longer answers at the end.

    Raises StageError where a network diverged.
    """
    keras.utils.set_random_seed(params.seed)
    tf.config.experimental.enable_op_determinism()
    with np.load(paths.POOL) as file, np.load(paths.FEATURES) as cached:
        pool = Pool(file["pixels"], file["labels"], file["folds"], cached["features"])
        clusters = file["clusters"]
    manifest = json.loads(paths.MANIFEST.read_text(encoding="utf-8"))
    tracking.fail_unfinished()
    run_id = tracking.start_run(
        params,
        data_source=manifest["source"],
        data_digest=manifest["digest"],
        image_count=len(pool.labels),
        git_commit=tracking.git_commit(),
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            histories = _train_folds(pool, params, Path(folder))
            epochs = best_epoch(histories)
            _keep_folds(params, Path(folder), epochs)
        logits = _score_folds(pool, params)
        _require_finite(logits, "a fold's network")
        np.savez(
            paths.OUT_OF_FOLD,
            logits=logits,
            labels=pool.labels,
            folds=pool.folds,
            clusters=clusters,
        )
        network, history = fit(pool, None, params, "all images", epochs=epochs)
        _require_finite(history[-1]["loss"], "the network of all images")
        network.save(paths.FINAL_MODEL)
        _write_history([*histories, history])
        paths.RUN.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
    except BaseException:
        with contextlib.suppress(TrackingError):  # what ended the training is what counts
            tracking.finish_run(run_id, "FAILED")
        raise
    try:
        tracking.log_training(run_id, paths.HISTORY)
    except TrackingError as error:
        print(f"train: {error}; the training is kept, and stage report adds its curves", file=sys.stderr)
    accuracy = (logits.argmax(axis=1) == pool.labels).mean()
    print(f"best epoch {epochs}; out-of-fold accuracy {accuracy:.3f}; MLflow run {run_id}")


def best_epoch(histories: list[History]) -> int:
    """1-based: the lowest val_loss summed over the folds, among the epochs that every fold reached.

    A fold that diverged has NaN from there on, and no such epoch is the best while there is another.
    """
    losses = [[row["val_loss"] for row in history] for history in histories]
    sums = np.array([sum(epoch) for epoch in zip(*losses, strict=False)])
    return int(np.where(np.isnan(sums), np.inf, sums).argmin()) + 1


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
    """Train a network on `part`, from `base`; with a `held_out` part it stops early by the loss there.

    `epochs` ends it sooner, on the same schedule; `checkpoints` receives the weights of each epoch.
    """
    settings = params.train
    keras.utils.set_random_seed(params.seed)
    network = keras.models.load_model(base, compile=False)
    weights = class_weights(part.labels) if settings.balance == "weights" else np.ones(len(CLASSES), np.float32)
    _fit_head(network, part, weights, params)

    freeze(network, params)
    _compute_in(network, "mixed_bfloat16" if settings.mixed_precision else "float32")
    batches = Batches(part, weights, params)
    compile_for(network, params, steps_per_epoch=len(batches))
    callbacks: list[keras.callbacks.Callback] = [Progress(name, epochs or settings.epochs)]
    if held_out is not None:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=settings.patience))
    if checkpoints is not None:
        callbacks.append(
            keras.callbacks.ModelCheckpoint(checkpoints / "{epoch:03d}.weights.h5", save_weights_only=True, verbose=0)
        )
    result = network.fit(
        batches,
        epochs=epochs or settings.epochs,
        validation_data=None if held_out is None else (held_out.pixels, one_hot(held_out.labels)),
        callbacks=callbacks,
        verbose=0,
    )
    _compute_in(network, "float32")
    rows = zip(*result.history.values(), strict=True)
    return network, [dict(zip(result.history, map(float, row), strict=True)) for row in rows]


def freeze(network: keras.Model, params: Params) -> None:
    """Leave the first layers of the backbone as they were pretrained, and on demand its depthwise kernels.

    Edges and textures are learnt from a million photographs, not from hundreds of slices; a step gets faster, too.
    """
    if params.base_model.weights == "none":
        return
    settings = params.train
    backbone = [
        layer
        for layer in network.layers
        if layer.weights and layer.name != LOGITS and not isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in backbone[: round(settings.frozen_layers * len(backbone))]:
        layer.trainable = False
    if settings.frozen_depthwise:
        for layer in backbone:
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                layer.trainable = False


def _compute_in(network: keras.Model, policy: str) -> None:
    """Set what the layers with weights compute in, the head left out; the weights themselves stay float32."""
    for layer in network.layers:
        if layer.weights and layer.name != LOGITS:
            layer.dtype_policy = policy


def class_weights(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 [classes]: each class as a whole weighs the same, an image 1 on average."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    return (len(labels) / (len(CLASSES) * counts)).astype(np.float32)


def one_hot(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Augmented training batches, the same in every run: each epoch's order and changes come from the seed.

    A batch is pixels uint8 [B, S, S, 1], the labels one-hot in float32 [B, classes], and weights [B].
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
        """Each image once; when oversampling, as often as the largest class has images, class by class."""
        rng = np.random.default_rng((self._params.seed, self._epoch))
        labels = self._part.labels
        if self._params.train.balance != "oversample":
            return rng.permutation(len(labels))
        largest = np.bincount(labels).max()
        rows = [np.resize(rng.permutation(np.flatnonzero(labels == c)), largest) for c in range(len(CLASSES))]
        return rng.permutation(np.concatenate(rows))


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """One bar a network, an epoch a step."""

    def __init__(self, name: str, epochs: int) -> None:
        super().__init__()
        self._bar = tqdm(total=epochs, desc=name, unit="epoch")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in (logs or {}).items()}, refresh=False)
        self._bar.update()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._bar.close()


def _fit_head(network: keras.Model, part: Pool, weights: NDArray[np.float32], params: Params) -> None:
    """Transfer learning: the dense layer alone, on the frozen backbone's features."""
    settings = params.train
    if settings.head_epochs == 0:
        return
    features = keras.Input(part.features.shape[1:])
    dropped = keras.layers.Dropout(params.base_model.dropout, seed=params.seed)(features)
    head = keras.Model(features, network.get_layer(LOGITS)(dropped))
    head.compile(
        keras.optimizers.Adam(settings.head_learning_rate),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing),
    )
    head.fit(
        part.features,
        one_hot(part.labels),
        sample_weight=weights[part.labels],
        batch_size=settings.batch_size,
        epochs=settings.head_epochs,
        verbose=0,
    )


def _train_folds(pool: Pool, params: Params, folder: Path) -> list[History]:
    histories = []
    for fold in range(params.prepare.folds):
        checkpoints = folder / f"fold{fold}"
        checkpoints.mkdir()
        _, history = fit(
            pool.take(pool.folds != fold),
            pool.take(pool.folds == fold),
            params,
            f"fold {fold + 1} of {params.prepare.folds}",
            checkpoints=checkpoints,
        )
        histories.append(history)
    return histories


def _keep_folds(params: Params, folder: Path, epoch: int) -> None:
    """Write each fold's network of that epoch to FOLD_MODELS."""
    network = keras.models.load_model(paths.BASE_MODEL, compile=False)
    shutil.rmtree(paths.FOLD_MODELS, ignore_errors=True)  # another number of folds would leave some
    paths.FOLD_MODELS.mkdir(parents=True)
    for fold in range(params.prepare.folds):
        network.load_weights(folder / f"fold{fold}" / f"{epoch:03d}.weights.h5")
        network.save(paths.fold_model(fold))


def _score_folds(pool: Pool, params: Params) -> NDArray[np.float32]:
    """Logits [N, classes] of every image by the network that never saw it."""
    logits = np.zeros((len(pool.labels), len(CLASSES)), np.float32)
    for fold in range(params.prepare.folds):
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        held_out = pool.folds == fold
        kernel, bias = network.get_layer(LOGITS).get_weights()
        logits[held_out] = features_of(network, pool.pixels[held_out]) @ kernel + bias
    return logits


def _require_finite(figures: ArrayLike, what: str) -> None:
    if not np.isfinite(figures).all():
        raise StageError(f"{what} diverged, its figures are not finite; lower train.learning_rate")


def _write_history(histories: list[History]) -> None:
    """HISTORY: each fold's network and, last, the final one, which learns for as many epochs as are best."""
    names = [f"fold_{fold + 1}" for fold in range(len(histories) - 1)] + ["final"]
    rows = [
        {"network": name, "epoch": epoch, **row}
        for name, history in zip(names, histories, strict=True)
        for epoch, row in enumerate(history, 1)
    ]
    with paths.HISTORY.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["network", "epoch", "loss", "accuracy", "val_loss", "val_accuracy"])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    runner.run(train)


if __name__ == "__main__":
    main()
