"""The model card, the data sheet and README are up to date, and claim only what is known."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from chestct.card import Estimate, Fold, ScoreCounts
from chestct.store import CARD
from pipeline import documents
from pipeline.core import paths
from pipeline.core.pages import replace_part
from pipeline.images.classes import CLASSES
from pipeline.judging.plots import NOTE
from tests.graphs import OOD_LIMIT, tiny_card, tiny_metrics, tiny_model
from tests.server import ROOT

WRITE = "run python -m pipeline.documents"


def each(count: int) -> dict[str, int]:
    return dict.fromkeys(CLASSES, count)


AUDIT: dict[str, Any] = {
    "digest": "ab" * 32,
    "images": {"train": each(8), "valid": each(2), "test": each(4)},
    "pool": each(9),
    "formats": {"JPEG RGB": 6, "PNG L": 50},
    "misnamed": ["train/normal/a.png"],
    "width": {"least": 100, "median": 400, "most": 1200},
    "height": {"least": 90, "median": 300, "most": 800},
    "unreadable": {},
    "copies": [["train/normal/a.png", "train/normal/b.png"]],
    "conflicts": [["train/normal/c.png", "train/squamous/d.png"]],
    "twins": {"test/normal/e.png": "train/normal/f.png"},
    "near_duplicates": [{"paths": ["train/normal/i.png", "valid/normal/j.png"], "correlation": 0.99}],
    "near_conflicts": [],
    "near_twins": [{"paths": ["test/normal/k.png", "train/normal/l.png"], "correlation": 0.9984}],
    "without_lung": {"valid/normal/pelvis.png": 0.0049},
    "test_of_known_scans": each(1),
    "test_of_new_scans": ["test/normal/new.png"],
    "scan_bounds": [
        {
            "correlation": 0.9,
            "groups": 34,
            "largest": 3,
            "groups_with_several_labels": 1,
            "pairs": 50,
            "one_label": 0.98,
            "one_scan": 0.97,
            "scans_divided": 6,
        }
    ],
    "scans": {
        "looked_at": 12,
        "number": 30,
        "of_one_image": 20,
        "largest": [5, 2],
        "per_class": each(8),
        "with_several_classes": [["train/normal/g.png", "train/squamous/h.png"]],
    },
    "shortcuts": {"file_geometry": {"four_classes_balanced": 0.5034, "normal_or_cancer_balanced": 0.8387}},
}


def plant(audit: dict[str, Any] | None = None, **changes: Any) -> None:
    """Write a released model with a changed card to the current folder."""
    card = tiny_model(paths.RELEASED)
    card.model_copy(update=changes).write(paths.RELEASED / CARD)
    if audit is not None:
        (paths.RELEASED / paths.AUDIT.name).write_text(json.dumps(audit), encoding="utf-8")


def shown(card: str) -> set[str]:
    """The names of the pictures in PICTURES that the text of the model card shows."""
    return set(re.findall(rf"\({documents.PICTURES.relative_to('docs')}/(\w+\.png)\)", card.replace("../", "")))


def test_the_documents_about_the_released_model_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path, text in documents.texts().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale; {WRITE}"
    assert (ROOT / documents.README).read_text(encoding="utf-8").count("`python -m pipeline.documents` writes") == 2


def test_the_pictures_of_the_released_model_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pictures = {path.name for path in documents.PICTURES.iterdir()}
    assert pictures == shown(documents.MODEL_CARD.read_text(encoding="utf-8")), WRITE
    for path in documents.PICTURES.iterdir():
        with Image.open(path) as picture:
            assert picture.info[NOTE] == documents.digest(), f"{path} is stale; {WRITE}"


@pytest.mark.usefixtures("workspace")
def test_what_was_not_measured_is_said() -> None:
    plant(baselines={}, checks={}, others={})
    texts = documents.texts()
    card, sheet = texts[documents.MODEL_CARD], texts[documents.DATA_SHEET]
    assert "| the label of the most alike standard picture in another fold | not measured | not measured |" in card
    assert "means over the folds' networks:\n\nNot measured." in card
    assert "Out-of-distribution scores: not measured." in card
    assert "## How often the test folder was opened\n\nNot measured." in card
    assert "Each fold alone: not measured." in card
    assert "## Faults\n\nNot measured." in sheet
    assert documents.README not in texts


@pytest.mark.usefixtures("workspace")
def test_a_figure_that_no_image_could_give_is_not_given_as_zero() -> None:
    metrics = tiny_metrics().model_copy(update={"roc_auc": Estimate(value=0, low=0, high=1)})
    plant(metrics={"out_of_fold": metrics})
    card = documents.texts()[documents.MODEL_CARD]
    assert "| ROC AUC, one class against the rest | not measured |" in card
    assert "0.000 (0.000 to 1.000)" not in card


@pytest.mark.usefixtures("workspace")
def test_the_test_folder_is_said_to_have_scans_of_train_wherever_its_figures_are() -> None:
    metrics = {name: tiny_metrics() for name in ("out_of_fold", "test")}
    plant(audit=AUDIT, metrics=metrics)
    documents.README.write_text("Read me.\n", encoding="utf-8")
    texts = documents.texts()
    name = "test folder, 4 of 16 from scans in train or valid"
    assert (
        f"| figure | out-of-fold (40 images of 20 scans) | {name} (40 images of 20 scans) |"
        in texts[documents.MODEL_CARD]
    )
    assert f"\nT{name[1:]}:\n\n| class | images |" in texts[documents.MODEL_CARD]
    assert f"| {name} | 40 | 20 | 0.900" in texts[documents.README]
    assert "4 of the 16 test images are of scans that are also in train or valid" in texts[documents.README]

    plant(audit=AUDIT | {"test_of_known_scans": each(0)}, metrics=metrics)
    texts = documents.texts()
    assert "| test folder (40 images of 20 scans) |" in texts[documents.MODEL_CARD]
    assert "scans that are also in train" not in texts[documents.README]
    plant(audit=AUDIT)
    assert "test images are of scans" not in documents.texts()[documents.README], "it was not opened"


@pytest.mark.parametrize(
    ("source", "words"), [("local", "images of a local folder"), ("kaggle", "Kaggle's chest CT-scan images")]
)
@pytest.mark.usefixtures("workspace")
def test_kaggle_is_named_only_for_its_own_images(source: Literal["local", "kaggle"], words: str) -> None:
    plant(audit=AUDIT, lineage=tiny_card(data_source=source).lineage)
    documents.README.write_text("Read me.\n", encoding="utf-8")
    texts = documents.texts()
    assert words in texts[documents.DATA_SHEET]
    named = [path for path, text in texts.items() if "kaggle" in text.lower()]
    assert named == ([documents.MODEL_CARD, documents.DATA_SHEET] if source == "kaggle" else [])


@pytest.mark.usefixtures("workspace")
def test_no_document_claims_what_is_not_known() -> None:
    for source in ("local", "kaggle", "synthetic"):
        plant(audit=AUDIT, lineage=tiny_card(data_source=source).lineage)
        for text in documents.texts().values():
            for claim in ("chose nothing", "Every choice", "no look-alike of it", "did not set any threshold"):
                assert claim not in text


@pytest.mark.usefixtures("workspace")
def test_slices_in_other_styles_have_a_table() -> None:
    kept = {name: Estimate(value=0.9, low=0.8, high=0.95) for name in ("kept", "accepted_otherwise")}
    plant(styles={"lung_window": kept, "padded": kept})
    text = documents.texts()[documents.MODEL_CARD]
    assert "| style | kept | accepted otherwise |" in text
    assert "| lung window | 0.900 (0.800 to 0.950) | 0.900 (0.800 to 0.950) |" in text
    plant()
    assert "in another style" in documents.texts()[documents.MODEL_CARD]
    assert "dangerous case.\n\nNot measured." in documents.texts()[documents.MODEL_CARD]


@pytest.mark.usefixtures("workspace")
def test_an_audit_of_other_data_is_named_as_such() -> None:
    plant(audit=AUDIT | {"digest": "cd" * 32})
    assert f"**this audit is of other data, `{'cd' * 32}`**" in documents.texts()[documents.DATA_SHEET]


@pytest.mark.usefixtures("workspace")
def test_a_whole_card_and_audit_are_written_with_pictures_instead_of_the_old_ones() -> None:
    counts = dict.fromkeys(("chest_ct", "noise"), (3, 5, 2))
    metrics = dict.fromkeys(("out_of_fold", "test", "test_new_scans"), tiny_metrics())
    scores = ScoreCounts(kind="mahalanobis", edges=(0.3, 0.6, OOD_LIMIT, 1.2), counts=counts)
    folds = (Fold(images=20, accuracy=0.9, macro_f1=0.7), Fold(images=20, accuracy=0.8, macro_f1=0.9))
    plant(audit=AUDIT, metrics=metrics, ood_scores=scores, folds=folds)
    before = replace_part("Before.\n\n", "python -m pipeline.documents", "stale\n")
    documents.README.write_text(f"{before}\nAfter.\n", encoding="utf-8")
    paths.TEST_OPENINGS.parent.mkdir()
    opening = {"opened": "2026-01-02", "run_id": "5eed", "model_sha256": "00", "data_digest": "ab" * 32}
    other = opening | {"data_digest": "cd" * 32}
    paths.TEST_OPENINGS.write_text(f"{json.dumps(opening)}\n{json.dumps(other)}\n", encoding="utf-8")
    documents.PICTURES.mkdir(parents=True)
    (documents.PICTURES / "old.png").write_bytes(b"old")

    documents.write()
    pictures = {path.name for path in documents.PICTURES.iterdir()}
    assert pictures == shown(documents.MODEL_CARD.read_text(encoding="utf-8"))
    assert "ood.png" in pictures
    for path in documents.PICTURES.iterdir():
        with Image.open(path) as picture:
            assert picture.info[NOTE] == documents.digest()
    card, sheet, readme = (
        path.read_text(encoding="utf-8") for path in (documents.MODEL_CARD, documents.DATA_SHEET, documents.README)
    )
    figures = "40 | 20 | 0.900 (0.850 to 0.950) | 0.900 (0.850 to 0.950) |"
    assert f"| test folder, 4 of 16 from scans in train or valid | {figures}" in readme
    assert readme.startswith("Before.")
    assert readme.endswith("After.\n")
    assert "stale" not in readme
    assert "| always the most frequent class | 0.250 (0.200 to 0.300) | not measured |" in card
    assert (
        "Each fold alone: accuracy 0.800 to 0.900, standard deviation 0.071; macro F1 0.700 to 0.900, standard"
        " deviation 0.141." in card
    )
    assert "| noise | 10 | 100.0% | 0.0% | 100.0% | 0.0% |" in card
    assert "On these data: 1 opening, for 1 training run; for this graph: no openings." in card
    assert "| all | 32 | 8 | 16 | 36 | 30 | 4 |" in sheet
    assert "| the file's width and height | 0.50 | 0.84 |" in sheet
    assert "near duplicates: `test/normal/k.png` (0.998)." in sheet
    assert "**Test images of patients in train or valid**: 4 of 16. These images are no test of new patients." in sheet
    assert "Images of new scans: `test/normal/new.png`." in sheet
    assert "`valid/normal/pelvis.png` (0.5%)" in sheet
    assert "**Scans with several labels**: that of `train/normal/g.png` and 1 other images." in sheet
    assert "12 of the 56 readable files were grouped by looking at them" in sheet
    assert "| 0.90 | 34 | 3 | 1 | 50 | 98.0% | 97.0% | 6 |" in sheet
    assert "`train/normal/c.png`, `train/squamous/d.png`" in sheet
    assert documents.texts()[documents.README] == readme


def test_a_folder_without_a_released_model_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert documents.main() == documents.BAD_INPUT
    assert capsys.readouterr().err == (
        f"documents: expected {paths.RELEASED / CARD}, found none; run it in the project's root\n"
    )
    assert list(tmp_path.iterdir()) == []
