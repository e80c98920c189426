"""Stage trust: how far the folds' networks can be trusted, on images that they never saw.

Each held-out image is scored for being unlike the training images, in three ways; changed a little, to see whether the
label stays; and explained by heat maps, which are put to the test. Pictures that are no chest CT are scored too. What
comes of it is judged by stage evaluate, which needs no Keras.
"""

from io import BytesIO
from typing import Any, Final, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from chestct.card import InputSpec
from chestct.image import decode
from pipeline.base_model import FEATURES, LOGITS
from pipeline.core import paths, runner
from pipeline.core.params import Params, Trust
from pipeline.images.classes import CLASSES
from pipeline.images.input_facts import facts_arrays
from pipeline.judging import ood
from pipeline.judging.heatmaps import body_mask, hide_quarter, mass_inside, rank_correlations
from pipeline.judging.other_pictures import draw_others

BATCH: Final = 32
SHOWN_WRONGLY: Final = 48
"""Images of the data set that are shown inverted, upside down and in a window's frame."""
RANDOM_HEADS: Final = 5

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Trained(NamedTuple):
    """A fold's network up to its feature map, and its head."""

    extractor: keras.Model
    kernel: Floats
    """[F, classes]"""
    bias: Floats
    """[classes]"""

    def maps(self, pixels: Pixels, what: str) -> Floats:
        """float32 [N, h, w, F] of uint8 [N, S, S, 1]."""
        starts = tqdm(range(0, len(pixels), BATCH), desc=what, unit="batch")
        return np.concatenate([self.extractor.predict_on_batch(pixels[start : start + BATCH]) for start in starts])

    def features(self, pixels: Pixels, what: str) -> Floats:
        """float32 [N, F]"""
        starts = range(0, len(pixels), 8 * BATCH)  # maps are large
        return np.concatenate([self.maps(pixels[s : s + 8 * BATCH], what).mean(axis=(1, 2)) for s in starts])

    def logits(self, pixels: Pixels, what: str) -> Floats:
        """float32 [N, classes]"""
        return np.asarray(self.features(pixels, what) @ self.kernel + self.bias)


def trust(params: Params) -> None:
    """Write TRUST: arrays of the images in POOL [N], of small changes [C, N] and of other pictures [M]."""
    with np.load(paths.POOL) as file:
        pixels, labels, folds = file["pixels"], file["labels"], file["folds"]
    spec = InputSpec(height=pixels.shape[1], width=pixels.shape[2])
    shown = pixels[np.linspace(0, len(pixels) - 1, min(SHOWN_WRONGLY, len(pixels))).astype(int)]
    drawn = list(draw_others(shown, params.seed))
    pictures = [decode(content, spec) for _, content in drawn]
    other_pixels = np.stack([picture.pixels for picture in pictures])

    arrays: dict[str, Any] = {
        "changes": np.array([change.__name__ for change in CHANGES]),
        "changed_logits": np.zeros((len(CHANGES), len(labels), len(CLASSES)), np.float32),
        **{name: np.zeros(len(labels), np.float32) for name in ("in_body", "body_area", "random_heads")},
        "occlusion_agrees": np.zeros(len(labels), bool),
        "other_groups": np.array([group for group, _ in drawn]),
        **{f"ood_{kind}": np.zeros(len(labels), np.float32) for kind in ood.KINDS},
        **{f"other_ood_{kind}": np.zeros((params.prepare.folds, len(drawn)), np.float32) for kind in ood.KINDS},
        **facts_arrays([picture.facts for picture in pictures]),
    }
    for fold in range(params.prepare.folds):
        network, held_out = _load(fold), folds == fold
        _score(network, fold, pixels, labels, held_out, other_pixels, arrays)
        _change(network, pixels[held_out], held_out, params.trust, arrays)
        _explain(network, pixels[held_out], held_out, params.seed, arrays)
    np.savez(paths.TRUST, **arrays)
    print(
        f"heat maps: {arrays['in_body'].mean():.0%} on the body, which fills {arrays['body_area'].mean():.0%}; "
        f"hiding what they point at agrees on {arrays['occlusion_agrees'].mean():.0%} of the images"
    )


def rotate(pixels: Pixels, settings: Trust) -> Pixels:
    """uint8 [S, S, 1], turned about its middle; what comes in is black."""
    return _grey(Image.fromarray(pixels[:, :, 0]).rotate(settings.rotation_degrees, Image.Resampling.BILINEAR))


def enlarge(pixels: Pixels, settings: Trust) -> Pixels:
    """uint8 [S, S, 1], larger about its middle."""
    height, width, _ = pixels.shape
    x, y = (side * settings.scale / (1 + settings.scale) / 2 for side in (width, height))
    image = Image.fromarray(pixels[:, :, 0])
    return _grey(image.resize((width, height), Image.Resampling.BILINEAR, (x, y, width - x, height - y)))


def compress(pixels: Pixels, settings: Trust) -> Pixels:
    """uint8 [S, S, 1] after a trip through JPEG."""
    buffer = BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, "JPEG", quality=settings.jpeg_quality)
    with Image.open(buffer) as image:
        return _grey(image)


def brighten(pixels: Pixels, settings: Trust) -> Pixels:
    """uint8 [S, S, 1], each level a share higher."""
    return np.asarray((pixels * (1 + settings.brightness)).clip(0, 255).round(), np.uint8)


CHANGES: Final = (rotate, enlarge, compress, brighten)


def _grey(image: Image.Image) -> Pixels:
    return np.asarray(image)[:, :, np.newaxis]


def _load(fold: int) -> Trained:
    network = keras.models.load_model(paths.fold_model(fold), compile=False)
    kernel, bias = network.get_layer(LOGITS).get_weights()
    return Trained(keras.Model(network.input, network.get_layer(FEATURES).input), kernel, bias)


def _score(
    network: Trained,
    fold: int,
    pixels: Pixels,
    labels: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    others: Pixels,
    arrays: dict[str, Any],
) -> None:
    """Scores for being unlike what the fold was trained on, of its held-out images and of the others."""
    features = network.features(pixels, f"fold {fold + 1}: features")
    other_features = network.features(others, f"fold {fold + 1}: other pictures")
    for kind in ood.KINDS:
        score = ood.fit(kind, features[~held_out], labels[~held_out], len(CLASSES))
        arrays[f"ood_{kind}"][held_out] = score(features[held_out])
        arrays[f"other_ood_{kind}"][fold] = score(other_features)


def _change(
    network: Trained, pixels: Pixels, held_out: NDArray[np.bool_], settings: Trust, arrays: dict[str, Any]
) -> None:
    for index, change in enumerate(CHANGES):
        changed = np.stack([change(image, settings) for image in pixels])
        arrays["changed_logits"][index, held_out] = network.logits(changed, change.__name__)


def _explain(network: Trained, pixels: Pixels, held_out: NDArray[np.bool_], seed: int, arrays: dict[str, Any]) -> None:
    """Share of the label's map on the body, what hiding parts does, and likeness to the maps of random heads."""
    rows = np.arange(len(pixels))
    maps = network.maps(pixels, "heat maps")
    logits = maps.mean(axis=(1, 2)) @ network.kernel + network.bias
    best = logits.argmax(axis=1)
    label_maps = (maps @ network.kernel)[rows, :, :, best]
    masks = [body_mask(image) for image in pixels]
    arrays["body_area"][held_out] = [mask.mean() for mask in masks]
    arrays["in_body"][held_out] = [mass_inside(map_, mask) for map_, mask in zip(label_maps, masks, strict=True)]

    hidden = [
        np.stack([hide_quarter(image, map_, most=most) for image, map_ in zip(pixels, label_maps, strict=True)])
        for most in (True, False)
    ]
    most, least = (network.logits(each, "hiding a quarter")[rows, best] for each in hidden)
    arrays["occlusion_agrees"][held_out] = most < least

    rng = np.random.default_rng(seed)
    heads = rng.normal(0, network.kernel.std(), (RANDOM_HEADS, *network.kernel.shape)).astype(np.float32)
    likeness = [np.abs(rank_correlations(label_maps, (maps @ head)[rows, :, :, best])) for head in heads]
    arrays["random_heads"][held_out] = np.mean(likeness, axis=0)


def main() -> None:
    runner.run(trust)


if __name__ == "__main__":
    main()
