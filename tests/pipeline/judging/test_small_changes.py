"""A small change of a picture is small."""

import numpy as np
import pytest

from pipeline.core.params import Params
from pipeline.images.phantoms import draw_phantom
from pipeline.judging.small_changes import CHANGES
from tests.server import ROOT


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_small_change_is_small_and_keeps_the_picture_in_its_place(change):
    slice_ = np.asarray(draw_phantom(0, np.random.default_rng(3)).convert("L").resize((64, 64)))[:, :, np.newaxis]
    changed = change(slice_, Params.read(ROOT / "params.yaml").trust)
    assert changed.shape == slice_.shape
    assert changed.dtype == np.uint8
    assert 0.2 < np.abs(changed.astype(float) - slice_).mean() < 12
    assert np.corrcoef(changed.ravel(), slice_.ravel())[0, 1] > 0.95
