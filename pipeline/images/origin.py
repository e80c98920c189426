"""What a card says of the images: the licence, and facts that a reader of the figures must know.

Every sentence is true of any images of that source, or has a figure that was measured on these.
"""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.images.manifest import Source

_PHANTOMS: Final = "Trained and measured on drawn phantoms. The figures say nothing about chest CT."
_ORIGIN: Final = {
    "kaggle": "One public collection of single slices without patient identifiers. Its normal slices come from other "
    "sources than its cancers.",
    "local": "The images are of a local folder. Where they were taken and of whom, and who labelled them, is not known "
    "here.",
}
_CLASSES: Final = "Only chest CT of these classes. The model does not know other diseases and may give them any label."
_LICENCES: Final = {
    "kaggle": "Code: MIT. Weights derived from the Kaggle data set mohamedhanyyy/chest-ctscan-images, stated there as "
    "ODbL with contents copyright of their original authors",
    "local": "Code: MIT. Weights derived from images of a local folder, whose licence is not known here",
    "synthetic": "Code and drawn phantoms: MIT. Weights derived from the phantoms",
}


def caveats(source: Source, audit: Mapping[str, Any], accuracies: Mapping[str, float], extra: int) -> tuple[str, ...]:
    """Facts about the images.

    `audit` is what stage prepare measured, `accuracies` those of the baselines by name, and `extra` the number of
    images of other sources that the networks also learned from.
    """
    if source == "synthetic":
        return (_PHANTOMS,)
    found = [_ORIGIN[source], _scans(audit), _style(accuracies)]
    test, known = (sum(counts.values()) for counts in (audit["images"]["test"], audit["test_of_known_scans"]))
    if known:
        found.append(
            f"{known} of the {test} images of the test folder are of scans that are also in train or valid. Their "
            "figures say nothing about new patients."
        )
    if extra:
        found.append(
            f"The networks also learned from {extra} images of other sources, of whose labels only a part is known."
        )
    return (*found, _CLASSES)


def licence(source: Source, weights: str, extra: int) -> str:
    """The licence in words. `weights` are the backbone's initial ones, as in params.yaml; `extra` as in `caveats`."""
    others = []
    if extra:
        others.append("from images of other sources, whose licences are not known here")
    if weights == "imagenet":
        others.append("from ImageNet weights")
    elif weights != "none":
        others.append("from a file of weights, whose licence is not known here")
    return "".join([_LICENCES[source], *(f", and {each}" for each in others), "."])


def _scans(audit: Mapping[str, Any]) -> str:
    files, looked_at = sum(audit["formats"].values()), audit["scans"]["looked_at"]
    how = "likeness has grouped the files"
    if looked_at:
        how = f"{looked_at} of the {files} files were grouped by looking at them"
        how += ", and likeness has grouped the others" if looked_at < files else ""
    return (
        f"Slices of one scan stay together as far as scans are known: {how}. Slices of one patient may still be in "
        "several folds, so figures on new patients may be lower."
    )


def _style(accuracies: Mapping[str, float]) -> str:
    return (
        "The style of a file alone, that is its size, grey levels and border, gives the right class for "
        f"{accuracies['style_alone']:.0%} of the held-out images, and always the most frequent class for "
        f"{accuracies['majority_class']:.0%}. The model may use what the standard picture leaves of it."
    )
