"""Stage teacher: in each fold a larger network, and one of all images, for the released network to learn from.

The folds tell no lies by it: the teacher of a fold has not seen the fold's images, so nothing of them reaches the
network that will be judged by them, and no image is held out to choose the teacher's epoch. It is never served, and may
take what time and memory it needs.
"""

import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline import paths, stage
from pipeline.base_model import build_teacher, features_of
from pipeline.params import Params
from pipeline.train import Pool, fit, require_finite


def teacher(params: Params) -> None:
    """Write TEACHERS. Raises StageError where a network diverged."""
    shutil.rmtree(paths.TEACHERS, ignore_errors=True)  # another number of folds would leave some
    paths.TEACHERS.mkdir(parents=True)
    if params.teacher.share == 0:
        print("no teacher: teacher.share is 0")
        return
    keras.utils.set_random_seed(params.seed)
    tf.config.experimental.enable_op_determinism()
    own = params.of_teacher
    with np.load(paths.POOL) as file:
        pixels, labels, folds = file["pixels"], file["labels"], file["folds"]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.keras"
        network = build_teacher(params)
        network.save(base)
        pool = Pool(pixels, labels, folds, features_of(network, pixels))
        right = np.zeros(len(labels), bool)
        for fold in range(params.prepare.folds):
            held_out = folds == fold
            network = _train(pool.take(~held_out), own, f"teacher {fold + 1} of {params.prepare.folds}", base)
            network.save(paths.teacher(fold))
            right[held_out] = network.predict(pixels[held_out], verbose=0).argmax(axis=1) == labels[held_out]
        _train(pool, own, "teacher of all images", base).save(paths.teacher(None))
    print(f"{own.base_model.backbone}: out-of-fold accuracy {right.mean():.3f} of {len(labels)} images")


def _train(part: Pool, own: Params, name: str, base: Path) -> keras.Model:
    network, history = fit(part, None, own, name, base=base)
    require_finite(history[-1]["loss"], name, "teacher.learning_rate")
    return keras.Model(network.input, network.output)  # without the optimizer's state, twice as large as the network


def main() -> None:
    stage.run(teacher)


if __name__ == "__main__":
    main()
