"""Stage train: train one network for each fold, then one network on all images.

Each fold's network stops once the loss on its held-out images no longer falls. All folds then go back to one epoch: the
one with the lowest held-out loss over all folds. A best epoch for each fold would be chosen on the images that judge
it. The common epoch is chosen on them too, so the figures are slightly too good (docs/explanation/evaluation.md).
Each fold's network of that epoch scores its held-out images. The released network trains on all images for as many
epochs.
"""

import contextlib
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from pipeline.core import paths, runner, tracking
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.classes import CLASSES
from pipeline.network import fitting
from pipeline.network.build import LOGITS, features_of
from pipeline.network.fitting import History, Pool


def train(params: Params) -> None:
    """Write FOLD_MODELS, OUT_OF_FOLD, FINAL_MODEL, HISTORY and RUN, and log them as one MLflow run.

    Closes the runs that an earlier training in this folder left open. If MLflow stops answering at the end, the files
    stay.

    Raises StageError if a network diverged.
    """
    keras.utils.set_random_seed(params.seed)
    tf.config.experimental.enable_op_determinism()
    pool = Pool.read()
    manifest = json.loads(paths.MANIFEST.read_text(encoding="utf-8"))
    tracking.fail_unfinished()
    run_id = tracking.start_run(
        params,
        data_source=manifest["source"],
        data_digest=manifest["digest"],
        image_count=len(pool.labels),
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            folds = range(params.prepare.folds)
            histories = [
                fitting.fit_fold(pool, fold, params, f"fold {fold + 1} of {len(folds)}", checkpoints=Path(folder))
                for fold in folds
            ]
            epochs = fitting.best_epoch(histories)
            _keep_folds(params, Path(folder), epochs)
        logits = _score_folds(pool, params)
        _require_finite(logits, "a fold's network")
        _write_out_of_fold(pool, logits)
        network, history = fitting.fit(pool, None, params, "all images", epochs=epochs)
        _require_finite(history[-1]["loss"], "the network of all images")
        network.save(paths.FINAL_MODEL)
        _write_history([*histories, history])
        paths.RUN.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
    except BaseException:
        with contextlib.suppress(TrackingError):  # report the error that ended the training instead
            tracking.finish_run(run_id, "FAILED")
        raise
    try:
        tracking.log_training(run_id, paths.HISTORY, paths.OUT_OF_FOLD)
    except TrackingError as error:
        print(f"train: {error}; the training is kept, and stage report adds its curves", file=sys.stderr)
    accuracy = (logits.argmax(axis=1) == pool.labels).mean()
    print(f"best epoch {epochs}; out-of-fold accuracy {accuracy:.3f}; MLflow run {run_id}")


def _keep_folds(params: Params, checkpoints: Path, epoch: int) -> None:
    """Write each fold's network of that epoch to FOLD_MODELS."""
    network = keras.models.load_model(paths.BASE_MODEL, compile=False)
    shutil.rmtree(paths.FOLD_MODELS, ignore_errors=True)  # an earlier training may have had more folds
    paths.FOLD_MODELS.mkdir(parents=True)
    for fold in range(params.prepare.folds):
        fitting.load_epoch(network, checkpoints, fold, epoch)
        network.save(paths.fold_model(fold))


def _score_folds(pool: Pool, params: Params) -> NDArray[np.float32]:
    """Return the logits [N, classes] of every image, by the network that never saw it."""
    logits = np.zeros((len(pool.labels), len(CLASSES)), np.float32)
    for fold in range(params.prepare.folds):
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        held_out = pool.folds == fold
        kernel, bias = network.get_layer(LOGITS).get_weights()
        logits[held_out] = features_of(network, pool.pixels[held_out]) @ kernel + bias
    return logits


def _write_out_of_fold(pool: Pool, logits: NDArray[np.float32]) -> None:
    """Write OUT_OF_FOLD: `logits` [N, classes] with what pairs each image with itself in another run."""
    with np.load(paths.POOL) as file:
        sha256 = file["sha256"]
    np.savez(paths.OUT_OF_FOLD, logits=logits, labels=pool.labels, folds=pool.folds, scans=pool.clusters, sha256=sha256)


def _require_finite(figures: ArrayLike, what: str) -> None:
    if not np.isfinite(figures).all():
        raise StageError(f"{what} diverged, its figures are not finite; lower train.learning_rate")


def _write_history(histories: list[History]) -> None:
    """Write HISTORY: the rows of each fold's network, then those of the final network."""
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
