"""The codes of the report: those of the standard by pydicom's dictionary, and the node's own."""

from typing import Final

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

SCHEME: Final = "99CHESTCT"
"""The node's own coding scheme. The standard keeps names that begin with 99 for private schemes."""
SCHEME_NAME: Final = "Chest Cancer Classification System, DICOM node"

PROCEDURE: Final = codes.LN.CTUnspecifiedBodyRegion
TITLE: Final = codes.DCM.ImagingMeasurementReport
PROBABILITY: Final = codes.DCM.Probability
CANCER_PROBABILITY: Final = codes.DCM.ProbabilityOfCancer
NO_UNITS: Final = codes.UCUM.NoUnits
CLASS: Final = codes.DCM.Finding
COMMENT: Final = codes.DCM.Comment
SOURCE_IMAGE: Final = codes.DCM.SourceImageForImageProcessingOperation
AI: Final = codes.DCM.ArtificialIntelligence
_CLASSES: Final = {
    "adenocarcinoma": codes.SCT.Adenocarcinoma,
    "large_cell_carcinoma": codes.SCT.LargeCellCarcinoma,
    "normal": codes.SCT.Normal,
    "squamous_cell_carcinoma": codes.SCT.SquamousCellCarcinoma,
}

DECISION: Final = CodedConcept("decision", SCHEME, "Decision of the algorithm")
LABEL: Final = CodedConcept("label", SCHEME, "Most probable class, not a diagnosis")
REASON: Final = CodedConcept("reason", SCHEME, "Reason for the decision")
NOT_SCORED: Final = CodedConcept("not_scored", SCHEME, "Not scored")
_DECISIONS: Final = {
    "accept": CodedConcept("accept", SCHEME, "Accepted: the most probable class stands"),
    "refer": CodedConcept("refer", SCHEME, "Referred: a person should look"),
    "reject": CodedConcept("reject", SCHEME, "Rejected: no usable chest CT slice"),
}


def class_code(name: str, title: str) -> CodedConcept:
    """The code of one of the model's classes: SNOMED CT's for the released model's, a private one for others."""
    if name in _CLASSES:
        return CodedConcept.from_code(_CLASSES[name])
    return CodedConcept(name[:16], SCHEME, title[:64])


def decision_code(decision: str) -> CodedConcept:
    return _DECISIONS[decision]


def schemes() -> list[CodingSchemeIdentificationItem]:
    """The item that says what the private scheme is."""
    return [CodingSchemeIdentificationItem(designator=SCHEME, name=SCHEME_NAME)]
