"""What a card says of images: only what is true of any such images, or was measured on these."""

from typing import Any

import pytest

from pipeline.images.origin import caveats, licence

ACCURACIES = {"style_alone": 0.412, "majority_class": 0.38}


def audit(*, known: int = 0, looked_at: int = 0) -> dict[str, Any]:
    return {
        "formats": {"PNG L": 80, "JPEG RGB": 20},
        "images": {"test": {"normal": 10, "adenocarcinoma": 20}},
        "test_of_known_scans": {"normal": 0, "adenocarcinoma": known},
        "scans": {"looked_at": looked_at},
    }


@pytest.mark.parametrize("weights", ["imagenet", "none", "w.h5@sha256:" + "0" * 64])
@pytest.mark.parametrize("source", ["local", "synthetic"])
def test_a_card_of_other_images_does_not_name_kaggle_or_its_licence(source: Any, weights: str) -> None:
    text = " ".join([*caveats(source, audit(known=3, looked_at=7), ACCURACIES, 5), licence(source, weights, 5)])
    assert "Kaggle" not in text
    assert "ODbL" not in text
    assert "collection" not in text


def test_a_local_folders_origin_and_licence_are_called_unknown() -> None:
    first, scans, style, classes = caveats("local", audit(), ACCURACIES, 0)
    assert first.endswith("is not known here.")
    assert "as far as scans are known: likeness has grouped the files." in scans
    assert "right class for 41% of the held-out images, and always the most frequent class for 38%" in style
    assert "other diseases" in classes
    assert licence("local", "imagenet", 0) == (
        "Code: MIT. Weights derived from images of a local folder, whose licence is not known here, and from ImageNet "
        "weights."
    )


def test_kaggles_licence_is_named_for_kaggles_images() -> None:
    assert "mohamedhanyyy/chest-ctscan-images, stated there as ODbL" in licence("kaggle", "imagenet", 0)
    assert "without patient identifiers" in caveats("kaggle", audit(), ACCURACIES, 0)[0]


def test_what_was_measured_is_said_with_its_numbers_and_only_if_it_is_so() -> None:
    text = " ".join(caveats("kaggle", audit(known=18, looked_at=90), ACCURACIES, 12))
    assert "90 of the 100 files were grouped by looking at them, and likeness has grouped the others" in text
    every = " ".join(caveats("kaggle", audit(looked_at=100), ACCURACIES, 0))
    assert "100 of the 100 files were grouped by looking at them. Slices of one patient" in every
    assert "18 of the 30 images of the test folder are of scans that are also in train or valid" in text
    assert "also learned from 12 images of other sources" in text
    text = " ".join(caveats("kaggle", audit(), ACCURACIES, 0))
    assert "test folder" not in text
    assert "other sources, of whose" not in text


def test_the_licence_names_what_the_weights_started_from() -> None:
    assert licence("synthetic", "none", 0) == "Code and drawn phantoms: MIT. Weights derived from the phantoms."
    assert licence("kaggle", "none", 0).endswith("original authors.")
    others = ", and from images of other sources, whose licences are not known here"
    file = ", and from a file of weights, whose licence is not known here."
    assert licence("kaggle", "w.h5@sha256:00", 3).endswith(f"original authors{others}{file}")


def test_phantoms_have_one_caveat() -> None:
    assert caveats("synthetic", {}, {}, 0) == (
        "Trained and measured on drawn phantoms. The figures say nothing about chest CT.",
    )
