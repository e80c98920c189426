"""The stage trust tests each fold's network on images that it never saw."""

import numpy as np
import pytest

from pipeline import trust
from pipeline.core import paths
from pipeline.judging import ood, other_pictures
from pipeline.judging.chest_ct import LinearProbe
from pipeline.network.build import build, features_of
from pipeline.network.summary import summaries_of
from tests.pipeline.conftest import small_params, write_pool

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 1), dtype=np.uint8)
LABELS = np.arange(24) % 4


def test_trust_puts_each_folds_network_to_the_test_on_images_it_never_saw(workspace, monkeypatch):
    monkeypatch.setattr(other_pictures, "COUNT", 3)
    monkeypatch.setattr(trust, "SHOWN", 4)
    params = small_params(prepare__folds=3)
    paths.fold_model(0).parent.mkdir(parents=True)
    write_pool(PIXELS, LABELS, np.arange(24) % 3)
    network = build(params)
    for fold in range(3):
        network.save(paths.fold_model(fold))
    trust.trust(params)
    with np.load(paths.TRUST) as file:
        arrays = dict(file)
    assert arrays["changed_logits"].shape == (len(arrays["changes"]), 24, 4)
    assert np.abs(arrays["changed_logits"] - network.predict_on_batch(PIXELS)).max() < 5
    assert (arrays["changed_logits"] != 0).all(), "every fold filled in its images"
    for name in ("in_body", "body_area", "random_heads"):
        assert ((arrays[name] >= 0) & (arrays[name] <= 1)).all()
    for kind in ood.KINDS:
        assert (arrays[f"ood_{kind}"] != 0).all()
        assert arrays[f"other_ood_{kind}"].shape == (3, len(arrays["other_groups"]))
    assert ((arrays["chest_ct"] > 0) & (arrays["chest_ct"] < 1)).all()
    assert arrays["other_chest_ct"].shape == (3, len(arrays["other_groups"]))
    summaries = summaries_of(network, PIXELS)
    for fold in range(3):
        probe = LinearProbe(arrays["probe_weights"][fold], arrays["probe_bias"][fold])
        held_out = np.arange(24) % 3 == fold
        assert arrays["chest_ct"][held_out] == pytest.approx(probe(summaries[held_out]), abs=1e-5)
    with np.load(paths.STYLES) as file:
        assert ((file["chest_ct"] > 0) & (file["chest_ct"] < 1)).all()
    features = features_of(network, PIXELS)
    others = np.arange(24) % 3 != 0
    score = ood.fit("neighbours", features[others], LABELS[others], 4)
    assert arrays["ood_neighbours"][0] == pytest.approx(score(features[:1])[0], rel=1e-3, abs=1e-5)
