"""Stage trust: tests the folds' networks on images that they were not trained on.

Each held-out image gets its out-of-distribution scores, and its probability of being a chest CT by a probe that is
fitted here. It is changed a little and shown in other styles, to see whether its label stays, and its heat map is
tested. Pictures that are not chest CT get the scores too. Stage evaluate judges the results without Keras.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from chestct.card import InputSpec
from chestct.image import decode
from pipeline.core import paths, runner
from pipeline.core.params import Params
from pipeline.images import input_facts
from pipeline.images.classes import class_count
from pipeline.judging import ood
from pipeline.judging.chest_ct import LinearProbe
from pipeline.judging.heatmaps import body_mask, hide_quarter, mass_inside, rank_correlations
from pipeline.judging.other_pictures import draw_other_pictures
from pipeline.judging.probe_pictures import ProbePictures, gather
from pipeline.judging.small_changes import CHANGES
from pipeline.judging.styles import STYLES, show
from pipeline.network.augmentation import Source
from pipeline.network.build import FEATURES, LOGITS, predict
from pipeline.network.fitting import source_of
from pipeline.network.summary import Summary, inputs_of

SHOWN: Final = 48
"""Images of the data set that are shown wrongly: inverted, upside down, in a screenshot and in a contact sheet."""
RANDOM_HEADS: Final = 5

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Trained(NamedTuple):
    """A fold's network: its layers up to the feature map, what sums up a picture for the probe, and its head."""

    extractor: keras.Model
    summariser: keras.Model
    """Gives the mean feature map and the summary (pipeline.network.summary)."""
    kernel: Floats
    """[F, classes]"""
    bias: Floats
    """[classes]"""

    @classmethod
    def load(cls, fold: int) -> "Trained":
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        kernel, bias = network.get_layer(LOGITS).get_weights()
        summary = Summary()(inputs_of(network))
        return cls(
            keras.Model(network.input, network.get_layer(FEATURES).input),
            keras.Model(network.input, [network.get_layer(FEATURES).output, summary]),
            kernel,
            bias,
        )

    def maps(self, pixels: Pixels, what: str) -> Floats:
        """Feature maps float32 [N, h, w, F] of uint8 [N, S, S, 1]; `what` is the progress bar's text."""
        (maps,) = predict(self.extractor, pixels, what)
        return maps

    def sum_up(self, pixels: Pixels, what: str) -> tuple[Floats, Floats]:
        """Mean feature maps float32 [N, F], and summaries float32 [N, P]."""
        features, summaries = predict(self.summariser, pixels, what)
        return features, summaries

    def logits(self, pixels: Pixels, what: str) -> Floats:
        """Logits float32 [N, classes]."""
        return np.asarray(self.sum_up(pixels, what)[0] @ self.kernel + self.bias)


def trust(params: Params) -> None:
    """Write TRUST, STYLES and PROBE_PICTURES.

    TRUST holds arrays of the images in POOL [N], of the small changes [C, N], of other pictures [folds, M] and of the
    folds' probes. STYLES holds arrays [styles, N] of the images shown in other styles.
    """
    with np.load(paths.POOL) as file:
        pixels, labels, folds = file["pixels"], file["labels"], file["folds"]
        sources = [source_of(*each) for each in zip(file["sources"], file["source_sizes"], strict=True)]
    spec = InputSpec(height=pixels.shape[1], width=pixels.shape[2])
    shown = np.linspace(0, len(pixels) - 1, min(SHOWN, len(pixels))).astype(int)
    drawn = list(draw_other_pictures(pixels[shown], [sources[row].picture for row in shown], params.seed))
    pictures = [decode(content, spec) for _, content in drawn]
    other_pixels = np.stack([picture.pixels for picture in pictures])
    gathered = gather(params, sources, pixels, drawn)
    np.savez(paths.PROBE_PICTURES, **gathered)
    probe_pictures = ProbePictures(*(gathered[name] for name in ProbePictures._fields))

    arrays: dict[str, Any] = {
        "changes": np.array([change.__name__ for change in CHANGES]),
        "changed_logits": np.zeros((len(CHANGES), len(labels), class_count()), np.float32),
        **{name: np.zeros(len(labels), np.float32) for name in ("in_body", "body_area", "random_heads")},
        "occlusion_agrees": np.zeros(len(labels), bool),
        "other_groups": np.array([group for group, _ in drawn]),
        "chest_ct": np.zeros(len(labels), np.float32),
        "other_chest_ct": np.zeros((params.prepare.folds, len(drawn)), np.float32),
        "probe_weights": [],
        "probe_bias": [],
        **{f"ood_{kind}": np.zeros(len(labels), np.float32) for kind in ood.KINDS},
        **{f"other_ood_{kind}": np.zeros((params.prepare.folds, len(drawn)), np.float32) for kind in ood.KINDS},
        **input_facts.to_arrays([picture.facts for picture in pictures]),
    }
    styled = _show_in_styles(sources, spec)
    for fold in range(params.prepare.folds):
        network, held_out = Trained.load(fold), folds == fold
        probe, scores = _score_pictures(network, fold, held_out, pixels, labels, other_pixels, probe_pictures, arrays)
        for index, style in enumerate(STYLES):
            features, summaries = network.sum_up(styled["pixels"][index, held_out], style)
            styled["chest_ct"][index, held_out] = probe(summaries)
            styled["logits"][index, held_out] = features @ network.kernel + network.bias
            for kind, score in scores.items():
                styled[f"ood_{kind}"][index, held_out] = score(features)
        for index, change in enumerate(CHANGES):
            changed = np.stack([change(image, params.trust) for image in pixels[held_out]])
            arrays["changed_logits"][index, held_out] = network.logits(changed, change.__name__)
        for name, values in _explain(network, pixels[held_out], params.seed).items():
            arrays[name][held_out] = values
    np.savez(paths.TRUST, **arrays)
    del styled["pixels"]
    np.savez(paths.STYLES, **styled)
    print(
        f"heat maps: {arrays['in_body'].mean():.0%} on the body, which fills {arrays['body_area'].mean():.0%}; "
        f"hiding what they point at agrees on {arrays['occlusion_agrees'].mean():.0%} of the images"
    )


def _score_pictures(
    network: Trained,
    fold: int,
    held_out: NDArray[np.bool_],
    pixels: Pixels,
    labels: NDArray[np.int64],
    other_pixels: Pixels,
    probe_pictures: ProbePictures,
    arrays: dict[str, Any],
) -> tuple[LinearProbe, dict[ood.Kind, ood.Score]]:
    """Fit the probe and the OOD scores on what the fold's network was trained on, and score the rest in `arrays`.

    Each group of other pictures is scored by a probe that was fitted without it.
    """
    features, summaries = network.sum_up(pixels, f"fold {fold + 1}: features")
    other_features, other_summaries = network.sum_up(other_pixels, f"fold {fold + 1}: other pictures")
    _, probed = network.sum_up(probe_pictures.pixels, f"fold {fold + 1}: the probe's pictures")
    probe = probe_pictures.fit(summaries, probed, ~held_out)
    arrays["chest_ct"][held_out] = probe(summaries[held_out])
    arrays["probe_weights"].append(probe.weights)
    arrays["probe_bias"].append(probe.bias)
    for group in dict.fromkeys(arrays["other_groups"].tolist()):
        chosen = arrays["other_groups"] == group
        apart = probe_pictures.fit(summaries, probed, ~held_out, without=group)
        arrays["other_chest_ct"][fold, chosen] = apart(other_summaries[chosen])
    scores = {kind: ood.fit(kind, features[~held_out], labels[~held_out], class_count()) for kind in ood.KINDS}
    for kind, score in scores.items():
        arrays[f"ood_{kind}"][held_out] = score(features[held_out])
        arrays[f"other_ood_{kind}"][fold] = score(other_features)
    return probe, scores


def _show_in_styles(sources: Sequence[Source], spec: InputSpec) -> dict[str, Any]:
    """The slices in each style: `pixels` [styles, N, S, S, 1], their input facts [styles * N], and room for scores."""
    shape = (len(STYLES), len(sources))
    bar = tqdm(total=shape[0] * shape[1], desc="showing in styles", unit="image")
    pictures = []
    for style in STYLES:
        for source in sources:
            pictures.append(show(source, style, spec))
            bar.update()
    return {
        "styles": np.array(list(STYLES)),
        "pixels": np.stack([picture.pixels for picture in pictures]).reshape(*shape, spec.height, spec.width, 1),
        "logits": np.zeros((*shape, class_count()), np.float32),
        "chest_ct": np.zeros(shape, np.float32),
        **{f"ood_{kind}": np.zeros(shape, np.float32) for kind in ood.KINDS},
        **input_facts.to_arrays([picture.facts for picture in pictures]),
    }


def _explain(network: Trained, pixels: Pixels, seed: int) -> dict[str, Any]:
    """Test the heat maps of `pixels` [N, S, S, 1].

    Returns arrays [N]: the share of the label's map that lies on the body, the share of the picture that the body
    fills, whether hiding the highest quarter of the map lowers the label's logit more than hiding the lowest, and the
    mean correlation with the maps of random heads.
    """
    rows = np.arange(len(pixels))
    maps = network.maps(pixels, "heat maps")
    logits = maps.mean(axis=(1, 2)) @ network.kernel + network.bias
    best = logits.argmax(axis=1)
    label_maps = (maps @ network.kernel)[rows, :, :, best]
    masks = [body_mask(image) for image in pixels]
    hidden = [
        np.stack([hide_quarter(image, map_, most=most) for image, map_ in zip(pixels, label_maps, strict=True)])
        for most in (True, False)
    ]
    most, least = (network.logits(each, "hiding a quarter")[rows, best] for each in hidden)
    rng = np.random.default_rng(seed)
    heads = rng.normal(0, network.kernel.std(), (RANDOM_HEADS, *network.kernel.shape)).astype(np.float32)
    correlations = [np.abs(rank_correlations(label_maps, (maps @ head)[rows, :, :, best])) for head in heads]
    return {
        "in_body": [mass_inside(map_, mask) for map_, mask in zip(label_maps, masks, strict=True)],
        "body_area": [mask.mean() for mask in masks],
        "occlusion_agrees": most < least,
        "random_heads": np.mean(correlations, axis=0),
    }


def main() -> None:
    runner.run(trust)


if __name__ == "__main__":
    main()
