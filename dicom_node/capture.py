"""The Secondary Capture: the slice with the highest probability of any cancer beside its heat map."""

import base64
from io import BytesIO
from typing import Final

import numpy as np
from highdicom import PhotometricInterpretationValues
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from dicom_node import concepts
from dicom_node.returned import MANUFACTURER, NAME, Identity
from dicom_node.score import Answer, Explanation, Result

BURNT_IN: Final = "Research only. Not a localisation"
"""Words on the heat map itself."""
SIDE: Final = 512
"""Pixels of a side of each picture."""
GAP: Final = 16
HEAD, FOOT = 64, 112
"""Rows of text above and below the pictures."""
_INK: Final = (230, 230, 230)
_WARM: Final = ((0, 0, 0), (120, 0, 60), (220, 60, 0), (255, 200, 0), (255, 255, 220))
"""Colours of the heat map from no evidence to most."""


def make_capture(identity: Identity, result: Result, explanation: Explanation, header: Dataset) -> SCImage:
    """Make the object. `header` is that of the explained slice."""
    answer = result.answers[explanation.name]
    image = SCImage(
        pixel_array=draw(
            answer, explanation, result, f"slice {header.get('InstanceNumber')}, revision {identity.revision}"
        ),
        photometric_interpretation=PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=identity.uid("sc series"),
        series_number=identity.series_number + 1,
        sop_instance_uid=identity.uid("sc"),
        instance_number=identity.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=NAME,
        software_versions=result.model.model,
        series_description="Chest CT heat map (research only, not a localisation)",
        specific_character_set=header.get("SpecificCharacterSet"),
    )
    image.copy_patient_and_study_information(header)
    if "BodyPartExamined" in header:
        image.BodyPartExamined = header.BodyPartExamined
    else:
        image.Laterality = ""  # unknown, but the element must be there
    image.PatientOrientation = _orientation(header)
    image.BurnedInAnnotation = "NO"  # the text names no patient
    image.DerivationDescription = f"{result.model.disclaimer} {BURNT_IN}."
    image.SourceImageSequence = [_source(header)]
    return image


def draw(answer: Answer, explanation: Explanation, result: Result, which: str) -> NDArray[np.uint8]:
    """Draw slice, heat map and words, uint8 [rows, columns, 3]. `which` says which slice it is."""
    seen = _picture(explanation.preview).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    heat = _picture(explanation.heatmap).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (2 * SIDE + 3 * GAP, HEAD + SIDE + FOOT))
    sheet.paste(seen, (GAP, HEAD))
    sheet.paste(_over(seen, heat), (2 * GAP + SIDE, HEAD))
    pen = ImageDraw.Draw(sheet)
    title = result.model.titles.get(explanation.shown, explanation.shown)
    large, small = ImageFont.load_default(22), ImageFont.load_default(17)
    pen.text((GAP, 8), f"What the model saw: {which}", _INK, large)
    pen.text((2 * GAP + SIDE, 8), f"Evidence for: {title}", _INK, large)
    pen.text((GAP, 38), "The slice with the highest probability of any cancer", _INK, small)
    pen.text((2 * GAP + SIDE, 38), "Brighter is more evidence within this slice", _INK, small)
    place = (2 * GAP + SIDE + 10, HEAD + SIDE - 34)
    pen.rectangle(pen.textbbox(place, BURNT_IN, large), fill=(0, 0, 0))
    pen.text(place, BURNT_IN, (255, 255, 255), large)
    for row, words in enumerate(_words(answer, result)):
        pen.text((GAP, HEAD + SIDE + 8 + 25 * row), words, _INK, small)
    return np.asarray(sheet)


def _words(answer: Answer, result: Result) -> tuple[str, ...]:
    cancer = answer.any_cancer(result.model.normal)
    label = "no label" if answer.label is None else result.model.titles.get(answer.label, answer.label)
    reasons = f" ({', '.join(answer.reasons)})" if answer.reasons else ""
    meaning = ", which means nothing without a label" if answer.label is None else ""
    return (
        f"Decision: {answer.decision}{reasons}",
        f"Most probable class: {label}. Any cancer: {cancer:.0%}{meaning}",
        f"Model: {result.model.model}, SHA-256 {result.model.lineage.model_sha256[:16]}...",
        result.model.disclaimer,
    )


def _picture(encoded: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(encoded))).convert("L")


def _over(seen: Image.Image, heat: Image.Image) -> Image.Image:
    """Lay the heat map over the picture. Both are grey and of one size."""
    share = np.asarray(heat, np.float64)[..., np.newaxis] / 255
    steps = np.linspace(0, 1, len(_WARM))
    warm = np.concatenate([np.interp(share, steps, [colour[band] for colour in _WARM]) for band in range(3)], axis=-1)
    grey = np.asarray(seen, np.float64)[..., np.newaxis]
    opacity = 0.7 * np.sqrt(share)
    return Image.fromarray(np.rint(grey * (1 - opacity) + warm * opacity).astype(np.uint8))


def _source(header: Dataset) -> Dataset:
    item, purpose = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = concepts.SOURCE_IMAGE[:3]
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _orientation(header: Dataset) -> list[str]:
    """Where rows and columns of the slice point to; empty if the slice does not say."""
    axes = (("L", "R"), ("P", "A"), ("H", "F"))
    try:
        values = [float(value) for value in header.ImageOrientationPatient]
    except (AttributeError, TypeError, ValueError):
        return []
    letters = []
    for vector in (values[:3], values[3:]):
        axis = max(range(3), key=lambda number: abs(vector[number]))
        letters.append(axes[axis][vector[axis] < 0])
    return letters
