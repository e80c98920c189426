"""Stage train: train one network for each fold, then one network on all images.

All networks train for the same number of epochs, which params.yaml sets. None is chosen on held-out images. Each fold's
network scores the images that it never saw. The released network trains on all images.

A finished network is kept in TRAINING until all are finished. A training that was killed continues behind the last one,
if data, parameters and code are still the same.
"""

import contextlib
import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from pipeline.core import paths, runner, source, tracking
from pipeline.core.curves import Curves
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.classes import class_count
from pipeline.images.manifest import Manifest
from pipeline.network import fitting
from pipeline.network.build import LOGITS, features_of
from pipeline.network.fitting import Extra, History, Pool


def train(params: Params) -> None:
    """Write FOLD_MODELS, OUT_OF_FOLD, FINAL_MODEL, HISTORY and RUN, and log them as one MLflow run.

    Closes the runs that an earlier training in this folder left open. If MLflow stops answering at the end, the files
    stay.

    Raises StageError if a network diverged.
    """
    keras.utils.set_random_seed(params.seed)
    tf.config.experimental.enable_op_determinism()
    pool, extra = Pool.read(), Extra.read()
    manifest = Manifest.read()
    tracking.fail_unfinished()
    run_id = tracking.start_run(
        params,
        data_source=params.data.source,
        data_digest=manifest.digest,
        image_count=len(pool.labels),
    )
    try:
        key, curves = _key(params), Curves(run_id)
        count, histories = params.prepare.folds, []
        for fold in range(count):
            name, add = f"fold {fold + 1} of {count}", partial(curves.add, f"fold_{fold + 1}")
            fit = partial(fitting.fit_fold, pool, extra, fold, params, name, on_epoch=add)
            network, history = _resume(f"{key}-{fold}", fit)
            paths.FOLD_MODELS.mkdir(parents=True, exist_ok=True)
            network.save(paths.fold_model(fold))
            histories.append(history)
        logits = _score_folds(pool, params)
        _require_finite(logits, "a fold's network")
        _write_out_of_fold(pool, logits)
        fit = partial(fitting.fit, pool, extra, None, params, "all images", on_epoch=partial(curves.add, "final"))
        network, history = _resume(f"{key}-all", fit)
        _require_finite(history[-1]["loss"], "the network of all images")
        network.save(paths.FINAL_MODEL)
        _write_history([*histories, history])
        paths.RUN.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        shutil.rmtree(paths.TRAINING, ignore_errors=True)
    except BaseException:
        with contextlib.suppress(TrackingError):  # report the error that ended the training instead
            tracking.finish_run(run_id, "FAILED")
        raise
    try:
        tracking.log_training(run_id, paths.HISTORY, paths.OUT_OF_FOLD)
    except TrackingError as error:
        print(f"train: {error}; the training is kept, and stage record adds its curves", file=sys.stderr)
    accuracy = (logits.argmax(axis=1) == pool.labels).mean()
    print(f"out-of-fold accuracy {accuracy:.3f}; MLflow run {run_id}")


def _key(params: Params) -> str:
    """A digest of data, parameters and code that a network depends on."""
    digest = hashlib.sha256(
        params.model_dump_json(include={"seed", "classes", "prepare", "base_model", "train"}).encode()
    )
    digest.update(source.describe("train").encode())
    for path in (paths.POOL, paths.EXTRA, paths.BASE_MODEL):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _resume(name: str, fit: Callable[[], tuple[keras.Model, History]]) -> tuple[keras.Model, History]:
    """The network and the history of that name in TRAINING. If it is not there, fit it and keep it there."""
    saved = paths.TRAINING / f"{name}.keras"
    rows = saved.with_suffix(".json")
    if rows.is_file():  # it is written last
        print(f"{saved} is of a training that was not finished; it is taken as it is")
        return keras.models.load_model(saved, compile=False), json.loads(rows.read_text(encoding="utf-8"))
    network, history = fit()
    if np.isfinite(history[-1]["loss"]):  # a network that diverged is fitted again
        paths.TRAINING.mkdir(parents=True, exist_ok=True)
        network.save(saved)
        rows.write_text(json.dumps(history), encoding="utf-8")
    return network, history


def _score_folds(pool: Pool, params: Params) -> NDArray[np.float32]:
    """Return the logits [N, classes] of every image, by the network that never saw it."""
    logits = np.zeros((len(pool.labels), class_count()), np.float32)
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
    np.savez(paths.OUT_OF_FOLD, logits=logits, labels=pool.labels, folds=pool.folds, scans=pool.scans, sha256=sha256)


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
