"""The returned objects: their content, their UIDs, and what DICOM's tools say about them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, FileDataset, dcmread
from pydicom.sr._concepts_dict import concepts as dictionary
from pydicom.sr.coding import Code

from chestct.card import DISCLAIMER
from dicom_node import capture, concepts
from dicom_node.objects import make_objects
from dicom_node.revisions import RevisionFolder
from dicom_node.score import Answer, Result
from tests.dicom_node.results import DIGEST, answer, result, revision
from tests.dicom_node.slices import PATIENT, PATIENT_ID, ct_slice, written
from tests.dicom_node.tools import errors, needs, run

CANCER = answer(0.7, 0.1, 0.15, 0.05)
NORMAL = answer(0.01, 0.01, 0.97, 0.01)
REFERRED = answer(0.4, 0.05, 0.5, 0.05, decision="refer", reasons=("close_call",))
REJECTED = answer(0.25, 0.25, 0.25, 0.25, decision="reject", label=None, reasons=("blank",))
UNREAD = Answer(error="unsupported_dicom")


def made(folder: RevisionFolder, scores: Result) -> list[FileDataset]:
    """Make the objects in their folder and read them."""
    folder.write_objects(make_objects(folder, scores))
    return [dcmread(path) for path in folder.objects()]


def items(item: Dataset, *path: str) -> list[Dataset]:
    """Return the content items below these meanings."""
    found = [item]
    for meaning in path:
        children = [child for one in found for child in one.get("ContentSequence", ())]
        found = [child for child in children if child.ConceptNameCodeSequence[0].CodeMeaning == meaning]
    return found


def code(item: Dataset) -> tuple[str, str]:
    value = item.ConceptCodeSequence[0]
    return value.CodeValue, value.CodingSchemeDesignator


def test_the_report_has_what_the_issue_of_a_result_needs(tmp_path: Path) -> None:
    report, _ = made(revision(tmp_path, 3), result(CANCER, NORMAL, REFERRED))
    assert report.Modality == "SR"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert report.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurement Report"
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (report.StudyInstanceUID, report.PatientName, report.PatientID) == ("1.2.3", PATIENT, PATIENT_ID)
    assert report.AccessionNumber == "A1"
    comments = [item.TextValue for item in items(report, "Comment")]
    assert comments == [
        DISCLAIMER,
        "Scored: all 3 slices, each shown from -1100 to 400 HU, which shows lung and soft tissue.",
        "3 of 3 were scored.",
    ]
    group = ("Imaging Measurements", "Measurement Group")
    assert len(items(report, *group)) == 3
    for name, value in {
        "Algorithm Name": "chestct",
        "Algorithm Version": "chestct:abc",
        "Algorithm Parameters": f"SHA-256 of the model: {DIGEST}",
    }.items():
        assert [item.TextValue for item in items(report, *group, name)] == [value] * 3
    decisions = [code(item)[0] for item in items(report, *group, "Decision of the algorithm")]
    assert decisions == ["accept", "accept", "refer"]
    labels = [code(item) for item in items(report, *group, "Most probable class, not a diagnosis")]
    assert labels == [("1187332001", "SCT"), ("17621005", "SCT"), ("17621005", "SCT")]
    cancers = [item.MeasuredValueSequence[0].NumericValue for item in items(report, *group, "Probability of cancer")]
    assert cancers == [0.85, 0.03, 0.5]
    (reason,) = items(report, *group, "Reason for the decision")
    assert reason.TextValue == "close_call: The two most probable classes are too close to call."
    images = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in items(report, *group, "Source of Measurement")
    ]
    assert images == ["1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert sorted(item.ReferencedSOPInstanceUID for item in evidence) == images


def test_each_class_has_its_probability(tmp_path: Path) -> None:
    report, _ = made(revision(tmp_path, 1), result(CANCER))
    found = items(report, "Imaging Measurements", "Measurement Group", "Probability")
    values = {code(items(item, "Finding")[0])[0]: item.MeasuredValueSequence[0].NumericValue for item in found}
    assert values == {"1187332001": 0.7, "22687000": 0.1, "17621005": 0.15, "1162767002": 0.05}
    assert {item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue for item in found} == {"1"}


def test_slices_that_were_not_scored_make_the_report_partial(tmp_path: Path) -> None:
    report, _ = made(revision(tmp_path, 2), result(CANCER, UNREAD))
    assert report.CompletionFlag == "PARTIAL"
    (words,) = items(report, "Imaging Measurements", "Measurement Group", "Not scored")
    assert words.TextValue == "unsupported_dicom"
    assert "1 of 2 were scored." in [item.TextValue for item in items(report, "Comment")]


def test_a_series_without_a_scored_slice_has_a_report_alone(tmp_path: Path) -> None:
    (report,) = made(revision(tmp_path, 1), result(UNREAD, top=None))
    assert (report.Modality, report.CompletionFlag) == ("SR", "PARTIAL")


def test_the_capture_shows_slice_and_heat_map(tmp_path: Path) -> None:
    _, shown = made(revision(tmp_path, 1), result(CANCER))
    assert (shown.Modality, shown.StudyInstanceUID, shown.PatientID) == ("OT", "1.2.3", PATIENT_ID)
    assert shown.DerivationDescription == f"{DISCLAIMER} Research only. Not a localisation."
    assert shown.PatientOrientation == ["L", "P"]
    assert shown.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.1"
    pixels = shown.pixel_array.astype(int)
    side, gap, head = capture.SIDE, capture.GAP, capture.HEAD
    left = pixels[head : head + side, gap : gap + side]
    right = pixels[head : head + side, 2 * gap + side : 2 * gap + 2 * side]
    assert (left == 100).all()  # the preview as it is
    hot, cold = right[3 * side // 8, 6 * side // 8], right[side // 8, side // 8]
    assert hot[0] > 200
    assert hot[0] > hot[2] + 20  # warm where the evidence is
    assert (cold == 100).all()
    burnt = right[side - 34 : side - 8, 10:330]
    assert (burnt.min(axis=2) > 200).sum() > 500  # letters
    assert (burnt.max(axis=2) < 20).sum() > 2000  # on black


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [([1, 0, 0, 0, 1, 0], ["L", "P"]), ([-1, 0, 0, 0, 0, -1], ["R", "F"]), ([0, -1, 0, 0, 0, 1], ["A", "H"])],
)
def test_the_capture_is_oriented_as_its_slice(tmp_path: Path, orientation: list[float], letters: list[str]) -> None:
    _, shown = made(revision(tmp_path, 1, ImageOrientationPatient=orientation), result(CANCER))
    assert shown.PatientOrientation == letters


def test_a_repeat_has_the_same_uids_and_anything_else_has_others(tmp_path: Path) -> None:
    def uids(name: str, count: int, scores: Result, **elements: Any) -> list[str]:
        return [one.SOPInstanceUID for one in made(revision(tmp_path / name, count, **elements), scores)]

    first = uids("a", 1, result(CANCER))
    assert uids("b", 1, result(CANCER)) == first
    others = [
        uids("c", 2, result(CANCER, NORMAL)),
        uids("d", 1, result(CANCER), series="1.2.3.5"),
        uids("e", 1, result(CANCER, model="chestct:def")),
    ]
    everything = [uid for one in (first, *others) for uid in one]
    assert len(set(everything)) == 8
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in everything)


def test_the_codes_are_those_of_the_dictionaries() -> None:
    named = [value for value in vars(concepts).values() if isinstance(value, Code)]
    standard = [*named, *concepts._CLASSES.values()]
    assert len(standard) == 13
    for one in standard:
        entries = dictionary[one.scheme_designator].values()
        assert (one.value, one.meaning) in [(value, known[0]) for entry in entries for value, known in entry.items()]
    own = [concepts.DECISION, concepts.LABEL, concepts.REASON, concepts.NOT_SCORED, *concepts._DECISIONS.values()]
    assert {one.scheme_designator for one in own} == {"99CHESTCT"}
    assert all(len(one.value) <= 16 and len(one.meaning) <= 64 for one in own)
    assert concepts.class_code("carcinoid_tumour_of_lung", "Carcinoid").value == "carcinoid_tumour"


BARE = dict.fromkeys(
    ("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName")
)
"""Elements that a slice may lack."""


@needs("dciodvfy", "dicom3tools")
@pytest.mark.parametrize("elements", [{}, BARE, {"BodyPartExamined": "CHEST"}], ids=["full", "bare", "chest"])
def test_dciodvfy_finds_no_error(tmp_path: Path, elements: dict[str, Any]) -> None:
    folder = revision(tmp_path, 4, **elements)
    made(folder, result(CANCER, REFERRED, REJECTED, UNREAD))
    assert [errors(path) for path in folder.objects()] == [[], []]


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Иванов^Иван"),
    ],
)
def test_names_in_any_character_set_come_back(tmp_path: Path, character_set: str | list[str], name: str) -> None:
    folder = revision(tmp_path, 1, SpecificCharacterSet=character_set, PatientName=name)
    for one in made(folder, result(CANCER)):
        assert (one.PatientName, one.SpecificCharacterSet) == (name, "ISO_IR 192")


@needs("dciodvfy", "dicom3tools")
def test_dciodvfy_finds_no_error_in_a_second_revision(tmp_path: Path) -> None:
    first = revision(tmp_path, 1)
    made(first, result(CANCER))
    spool = first._spool
    spool.take("key", "02", written(ct_slice(number=2)))
    second = RevisionFolder.close(spool, "key", 64)
    assert second is not None
    report, _ = made(second, result(CANCER, NORMAL))
    assert report.InstanceNumber == 2
    assert [errors(path) for path in second.objects()] == [[], []]


@needs("dsrdump", "dcmtk")
def test_dcmtk_reads_both_objects(tmp_path: Path) -> None:
    folder = revision(tmp_path, 2)
    made(folder, result(CANCER, REFERRED))
    report, shown = folder.objects()
    text = run("dsrdump", "+Pl", report)
    assert "Comprehensive SR Document" in text
    assert "UNVERIFIED" in text
    assert 'TEXT:(,,"Comment")="Research and education only. Not a medical device."' in text
    assert '(refer,99CHESTCT,"Referred: a person should look")' in text
    dump = run("dcmdump", shown)
    assert "=SecondaryCaptureImageStorage" in dump
    assert "Research only. Not a localisation." in run("dcmdump", "+L", shown)


def test_grey_levels_stay_where_there_is_no_evidence() -> None:
    seen = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    unchanged = np.asarray(capture._over(seen, Image.new("L", (16, 16))))
    assert (unchanged == np.asarray(seen)[..., np.newaxis]).all()
