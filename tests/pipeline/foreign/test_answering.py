"""Slices from elsewhere are answered as the service answers them, and counted by outcome and patient."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from chestct import slice_file, store
from chestct.card import ModelCard
from chestct.digests import write_sums
from chestct.engine import Engine
from chestct.prediction import decide
from chestct.store import CARD, GRAPH
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.foreign.answering import (
    ACCEPTED_CANCER,
    ACCEPTED_NORMAL,
    NOT_CHEST_CT,
    REFERRED,
    REFUSED,
    UNFAMILIAR,
    UNREADABLE,
    Answered,
    answer_files,
    digest_of,
    number_patients,
    open_model,
)
from pipeline.foreign.folders import kind_of, list_slices
from pipeline.images.phantoms import draw_phantom
from tests.dicom import dicom_file
from tests.graphs import tiny_model
from tests.pipeline.foreign.answered import answered, file, towards, unreadable

pytestmark = pytest.mark.usefixtures("model_store")
NORMAL = 2


@pytest.mark.parametrize(
    ("each", "outcome"),
    [
        (answered(file("normal"), *towards(0)), ACCEPTED_CANCER),
        (answered(file("normal"), *towards(NORMAL)), ACCEPTED_NORMAL),
        (answered(file("normal"), 1, 1, 1, 1), REFERRED),
        (answered(file("normal"), *towards(0), ood_score=0.95), UNFAMILIAR),
        (answered(file("normal"), *towards(0), chest_ct=0.1), NOT_CHEST_CT),
        (answered(file("normal"), *towards(0), chest_ct=0.1, colour=99), NOT_CHEST_CT),
        (answered(file("normal"), *towards(0), ood_score=0.95, colour=99), REFUSED),
        (unreadable(file("normal")), UNREADABLE),
    ],
)
def test_an_answer_has_one_outcome(each: Answered, outcome: str) -> None:
    assert each.outcome == outcome
    assert each.labelled == (outcome in (ACCEPTED_CANCER, ACCEPTED_NORMAL, REFERRED))


def test_patients_are_told_apart_by_source_and_name_and_copies_are_of_one_patient() -> None:
    logits = towards(0)
    numbers = number_patients(
        [
            answered(file("cancer", "P1", source="here"), *logits),
            answered(file("cancer", "P1", source="there"), *logits),
            answered(file("normal", "P1", source="there"), *logits),
            answered(file("cancer", name="a.png"), *logits, sha256="a"),
            answered(file("cancer", name="b.png"), *logits, sha256="b"),
            answered(file("cancer", name="copy of a.png"), *logits, sha256="a"),
        ]
    )
    assert numbers.tolist() == [0, 1, 1, 2, 3, 2]


def test_the_digest_is_of_paths_and_contents_in_any_order() -> None:
    one, other = (answered(file("normal", name=name), *towards(0), sha256=name) for name in ("x", "y"))
    expected = hashlib.sha256(b"x x\ny y\n").hexdigest()
    assert digest_of([one, other]) == digest_of([other, one]) == expected
    assert digest_of([one, other._replace(sha256="z")]) != expected


def test_files_are_answered_as_the_service_answers_them(tmp_path: Path) -> None:
    folder = tmp_path / "abroad"
    (folder / "normal").mkdir(parents=True)
    draw_phantom(NORMAL, np.random.default_rng(1)).save(folder / "normal" / "1.png")
    draw_phantom(0, np.random.default_rng(2)).convert("L").save(folder / "normal" / "2.jpg")
    grey = np.asarray(draw_phantom(0, np.random.default_rng(3)).convert("L"))
    (folder / "normal" / "IM3").write_bytes(dicom_file(grey))
    (folder / "normal" / "4.png").write_bytes(b"not a picture")
    (folder / "normal" / "5.dcm").write_bytes(dicom_file(grey, Modality="MR"))
    tiny_model(tmp_path / "model")
    model = open_model(str(tmp_path / "model"))
    found = answer_files(model, list_slices(folder, kind_of, {}))
    assert [each.file.name.removeprefix("normal/") for each in found] == ["1.png", "2.jpg", "4.png", "5.dcm", "IM3"]
    assert [each.dicom for each in found] == [False, False, False, False, True]
    assert found[2].problem.startswith("undecodable_image: ")
    assert found[3].problem.startswith("unsupported_dicom: ")
    assert found[2].prediction is found[3].prediction is None
    for each in (found[0], found[1], found[4]):
        content = each.file.path.read_bytes()
        picture = slice_file.read(content, model.card.input)
        scores = Engine(tmp_path / "model" / GRAPH).infer(picture.pixels[np.newaxis])
        expected = decide(
            model.card,
            scores.probabilities[0],
            float(scores.ood_score[0]),
            float(scores.chest_ct[0]),
            picture.facts,
            request_id=each.file.name,
            model=model.tag,
        )
        assert each.prediction == expected
        assert each.sha256 == hashlib.sha256(content).hexdigest()
        assert each.logits == pytest.approx(
            np.log(scores.probabilities[0]) - np.log(scores.probabilities[0, 0]) + each.logits[0], abs=1e-4
        )


def test_a_file_that_can_not_be_opened_is_counted_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "abroad" / "normal").mkdir(parents=True)
    (tmp_path / "abroad" / "normal" / "1.png").symlink_to(tmp_path / "gone")
    tiny_model(tmp_path / "model")
    (found,) = answer_files(open_model(str(tmp_path / "model")), list_slices(tmp_path / "abroad", kind_of, {}))
    assert (found.outcome, found.problem) == (UNREADABLE, "can't be opened: No such file or directory")


def test_the_model_is_a_folder_a_tag_or_the_one_that_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RELEASED", tmp_path / "release")
    for name in ("release", "own", "other"):
        tiny_model(tmp_path / name, run_id=name)
    write_sums(tmp_path / "release", GRAPH, CARD)
    released = open_model(None)
    assert released.card.lineage.run_id == "release"
    tag = store.import_model(tmp_path / "own")
    assert open_model(None).tag == open_model(tag).tag == tag
    assert open_model(released.tag).card == released.card
    folder = open_model(str(tmp_path / "other"))
    assert folder.card.lineage.run_id == "other"
    assert folder.tag == store.import_model(tmp_path / "other")


def test_a_missing_or_changed_model_and_one_of_other_classes_are_refused_in_one_line(tmp_path: Path) -> None:
    tiny_model(tmp_path / "changed")
    card = ModelCard.read(tmp_path / "changed" / CARD)
    lineage = card.lineage.model_copy(update={"model_sha256": "0" * 64})
    card.model_copy(update={"lineage": lineage}).write(tmp_path / "changed" / CARD)
    tiny_model(tmp_path / "two", classes=("cancer", "normal"))
    tiny_model(tmp_path / "older")
    (tmp_path / "older" / CARD).write_text('{"name": "chestct"}', encoding="utf-8")
    refusals = {
        "chestct:none": "no model",
        "changed": "was changed",
        "two": "a model of the classes",
        "older": r"older: this version can't read the model's card \(classes: Field required\)",
    }
    for name, words in refusals.items():
        with pytest.raises(StageError, match=words) as refused:
            open_model(name if ":" in name else str(tmp_path / name))
        assert "\n" not in str(refused.value)
