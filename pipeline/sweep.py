"""`make sweep`: search for better parameters of train, judged by held-out folds alone.

A trial draws values for the keys in section `sweep` of params.yaml and trains one network for each fold, as stage train
does. It ends early if it is worse on the folds so far than half of the earlier trials. The first trial takes the
current values of params.yaml.

Trials are compared by the loss of their out-of-fold predictions after temperature scaling. That loss is smoother than
accuracy or macro F1 on hundreds of images, and label smoothing does not change its meaning.

SWEEP keeps the trials. After a kill, `make sweep` tries the interrupted trial again and continues. Each trial is an
MLflow run below one run of the whole sweep.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, Final

import keras
import numpy as np
import optuna
import tensorflow as tf
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sklearn.metrics import f1_score
from tqdm import tqdm

from pipeline.core import paths, runner, tracking
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params
from pipeline.images.folds import make_folds
from pipeline.images.manifest import Manifest
from pipeline.judging.calibration import cross_entropy, fit_temperature
from pipeline.network.build import build
from pipeline.network.fitting import Extra, Pool, fit_fold

LOSS: Final = "out_of_fold_loss"
MAX_ATTEMPTS: Final = 3
"""Attempts at the same values, if each was killed."""

_COUNTED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_RUN: Final = "mlflow_run"
_ATTEMPTS: Final = "attempts"


def sweep(params: Params) -> None:
    """Run trials until there are `params.sweep.trials`. Then print the command that trains the best one.

    Raises StageError if there is nothing to search, no prepared data, or another sweep is running in this folder.
    """
    if not params.sweep.values:
        raise StageError("nothing to search; name keys with their values in section sweep of params.yaml")
    keras.utils.set_random_seed(params.seed)
    tf.config.experimental.enable_op_determinism()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    manifest = Manifest.read()
    pool, extra = Pool.read(), Extra.read()
    pool = pool._replace(folds=make_folds(pool.labels, pool.scans, params.sweep.folds, params.seed))
    start_run = partial(
        tracking.start_run,
        data_source=params.data.source,
        data_digest=manifest.digest,
        image_count=len(pool.labels),
        experiment=tracking.SWEEPS,
    )
    with _alone():
        study = _open_study(params, manifest.digest)
        if _RUN not in study.user_attrs:
            study.set_user_attr(_RUN, start_run(params, name=study.study_name))
        parent = study.user_attrs[_RUN]
        _retry_interrupted(study, parent)
        done = len(study.get_trials(deepcopy=False, states=_COUNTED))
        print(f"{study.study_name}: {done} of {params.sweep.trials} trials in {paths.SWEEP}")
        with tqdm(total=params.sweep.trials, initial=done, desc="sweep", unit="trial") as bar:
            while bar.n < params.sweep.trials:
                _run_trial(study, pool, extra, params, partial(start_run, parent=parent))
                bar.set_postfix(best=f"{study.best_value:.4f}", refresh=False)
                bar.update()
        tracking.finish_run(parent, "FINISHED")
    print(_conclude(study))


@contextmanager
def _alone() -> Iterator[None]:
    """Hold a lock that ends with this process, so that a trial marked as running belongs to a dead process."""
    with paths.SWEEP.with_suffix(".db.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError("another `make sweep` is running here; wait for it, or end it") from None
        yield


def _open_study(params: Params, data_digest: str) -> optuna.Study:
    study = optuna.create_study(
        study_name=_study_name(params, data_digest),
        storage=f"sqlite:///{paths.SWEEP}",
        pruner=optuna.pruners.MedianPruner(),
        load_if_exists=True,
    )
    if not study.trials and _is_inside(params):
        study.enqueue_trial({key: params.get(key) for key in params.sweep.values})
    study.sampler = optuna.samplers.TPESampler(seed=params.seed + len(study.trials))  # a resumed sweep draws new values
    return study


def _study_name(params: Params, data_digest: str) -> str:
    """Return a name that is the same for the same data, ranges and other parameters, so that trials are comparable."""
    alike = params.changed({key: values[0] for key, values in params.sweep.values.items()})
    included = {"seed", "prepare", "base_model", "train", "sweep"}
    fixed = alike.model_dump_json(include=included, exclude={"sweep": {"trials"}})
    return f"sweep-{hashlib.sha256((data_digest + fixed).encode()).hexdigest()[:8]}"


def _is_inside(params: Params) -> bool:
    """Return whether the sweep could draw the current values."""
    sweep = params.sweep
    return all(
        low <= params.get(key) <= high for key, (low, high) in {**sweep.uniform, **sweep.log_uniform}.items()
    ) and all(params.get(key) in values for key, values in sweep.choices.items())


def _space(params: Params) -> dict[str, BaseDistribution]:
    space: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(values) for key, values in params.sweep.choices.items()
    }
    for log, ranges in ((False, params.sweep.uniform), (True, params.sweep.log_uniform)):
        for key, (low, high) in ranges.items():
            whole = isinstance(params.get(key), int)
            space[key] = IntDistribution(int(low), int(high), log) if whole else FloatDistribution(low, high, log)
    return space


def _retry_interrupted(study: optuna.Study, parent: str) -> None:
    """Mark the trials of a dead process as failed, and queue their values again.

    After MAX_ATTEMPTS, give the values up. They may need so much memory that the system kills the process.
    """
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        attempts = trial.user_attrs.get(_ATTEMPTS, 0) + 1
        if attempts < MAX_ATTEMPTS:
            study.enqueue_trial(trial.params, {_ATTEMPTS: attempts})
    tracking.fail_unfinished(parent)


def _run_trial(study: optuna.Study, pool: Pool, extra: Extra, params: Params, start_run: Callable[..., str]) -> None:
    """Draw values, train with them, and record the result in the study and in MLflow.

    After an error the trial has failed and is not tried again. After a kill, Ctrl-C or a TrackingError, the next sweep
    tries it again.
    """
    trial = study.ask(_space(params))
    name = f"trial {trial.number}"
    run_id = start_run(tried := params.changed(_rounded(trial.params)), name=name)
    try:
        for fold, figures in enumerate(_train_folds(pool, extra, tried, name)):
            tracking.log_metrics(run_id, figures, step=fold + 1)
            trial.report(figures[LOSS], fold)
            if fold + 1 < params.sweep.folds and trial.should_prune():
                tracking.finish_run(run_id, "KILLED")
                study.tell(trial, state=TrialState.PRUNED)
                return
        tracking.finish_run(run_id, "FINISHED")
        study.tell(trial, figures[LOSS])
    except TrackingError:
        raise
    except Exception:
        study.tell(trial, state=TrialState.FAIL)
        tracking.finish_run(run_id, "FAILED")
        raise


def _rounded(values: dict[str, Any]) -> dict[str, object]:
    """Round to three digits, so that the command that trains a trial again is short and exact."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in values.items()}


def _train_folds(pool: Pool, extra: Extra, params: Params, name: str) -> Iterator[dict[str, float]]:
    """Train one network after the other. After each, yield the figures of all held-out images so far."""
    scratch = paths.SWEEP_SCRATCH
    base = scratch / "base.keras"
    shutil.rmtree(scratch, ignore_errors=True)  # a killed trial leaves files
    scratch.mkdir(parents=True)
    try:
        keras.utils.clear_session()
        keras.utils.set_random_seed(params.seed)
        network = build(params)
        network.save(base)
        count = params.sweep.folds
        logits, labels = [], []
        for fold in range(count):
            network, _ = fit_fold(pool, extra, fold, params, f"{name}, fold {fold + 1} of {count}", base=base)
            held_out = pool.take(pool.folds == fold)
            logits.append(network.predict(held_out.pixels, verbose=0))
            labels.append(held_out.labels)
            yield _measure(np.concatenate(logits), np.concatenate(labels))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _measure(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return figures of logits [N, classes] and labels [N]. The loss of a network that diverged is infinite."""
    if not np.isfinite(logits).all():
        return {LOSS: inf}
    predicted = logits.argmax(axis=1)
    return {
        LOSS: cross_entropy(logits / fit_temperature(logits, labels), labels),
        "out_of_fold_accuracy": float((predicted == labels).mean()),
        "out_of_fold_macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def _conclude(study: optuna.Study) -> str:
    """Return how the trials ended and the command that trains the best one on all images."""
    trials = study.get_trials(deepcopy=False)
    count = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    best = study.best_trial
    settings = " ".join(
        f"-S {key}={json.dumps(value) if isinstance(value, bool) else value}"
        for key, value in _rounded(best.params).items()
    )
    return (
        f"{count[TrialState.COMPLETE]} trials complete, {count[TrialState.PRUNED]} ended early, "
        f"{count[TrialState.FAIL]} failed\n"
        f"best: trial {best.number}, {LOSS} {best.value:.4f}; train it on all images with\n"
        f"dvc exp run {settings}"
    )


def main() -> None:
    runner.run(sweep)


if __name__ == "__main__":
    main()
