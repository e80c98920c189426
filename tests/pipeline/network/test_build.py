"""The network: how its backbones scale pixels, and what is frozen."""

import numpy as np
import pytest

from pipeline.core.errors import StageError
from pipeline.network.backbones import BACKBONES
from pipeline.network.build import build
from tests.pipeline.conftest import small_params


def test_pixels_of_any_backbone_are_scaled_as_its_weights_expect():
    grey = np.array([0.0, 255.0])
    scaled = {name: grey * b.scale + np.atleast_1d(b.offset)[:, None] for name, b in BACKBONES.items()}
    assert scaled["vgg16"] == pytest.approx(np.array([[-103.939, 151.061], [-116.779, 138.221], [-123.68, 131.32]]))
    assert scaled["mobilenet_v2"] == pytest.approx(np.array([[-1, 1]]))
    assert scaled["efficientnet_lite0"] == pytest.approx(np.array([[-127 / 128, 1]]))


def test_with_pretrained_weights_only_the_batch_norms_are_frozen():
    layers = build(small_params(base_model__backbone="efficientnet_lite0", base_model__weights="imagenet")).layers
    assert {type(layer).__name__ for layer in layers if not layer.trainable} == {"BatchNormalization"}


def test_the_small_backbone_refuses_pretrained_weights():
    with pytest.raises(StageError, match="small starts from none"):
        build(small_params(base_model__weights="imagenet"))
