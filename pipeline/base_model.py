"""Stage base_model: build the network that training starts from, and cache its features of every image."""

import keras
import numpy as np

from pipeline.core import paths, runner
from pipeline.core.params import Params
from pipeline.network.build import build, features_of


def base_model(params: Params) -> None:
    """Write the untrained network to BASE_MODEL and its features, float32 [N, F], to FEATURES."""
    keras.utils.set_random_seed(params.seed)
    network = build(params)
    paths.BASE_MODEL.parent.mkdir(parents=True, exist_ok=True)
    network.save(paths.BASE_MODEL)
    with np.load(paths.POOL) as pool:
        pixels = pool["pixels"]
    np.savez(paths.FEATURES, features=features_of(network, pixels))
    print(f"{params.base_model.backbone}: {network.count_params():,} parameters, features of {len(pixels)} images")


def main() -> None:
    runner.run(base_model)


if __name__ == "__main__":
    main()
