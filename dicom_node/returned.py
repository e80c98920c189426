"""What both returned objects share: who made them, and UIDs that a repeat has again."""

import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

from pydicom import Dataset

from dicom_node.score import Model

NAME: Final = "chestct"
MANUFACTURER: Final = "Chest Cancer Classification System"
_NAMESPACE: Final = uuid.UUID("7f1d8c52-3a34-5b0e-9a0b-6d0f1c1f7a55")
_SERIES_NUMBER: Final = 9000
"""Added to the number of the source's series, so that the results come last in a viewer."""
_TYPE_2: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Elements that each object has, though they may be empty."""


class Identity(NamedTuple):
    """What the UIDs of a revision's objects derive from."""

    series: str
    """Series Instance UID of the slices."""
    revision: int
    slices: tuple[str, ...]
    """Names of all slices of the revision."""
    model: Model
    series_number: int

    @classmethod
    def of(cls, header: Dataset, revision: int, slices: Sequence[str], model: Model) -> "Identity":
        """The identity of a revision that `header` is a slice of."""
        try:
            number = int(header.SeriesNumber)
        except (AttributeError, TypeError, ValueError):
            number = 0
        return cls(header.SeriesInstanceUID, revision, tuple(slices), model, _SERIES_NUMBER + number)

    def uid(self, *what: str) -> str:
        """UID of a part of the objects: a name-based UUID, as PS3.5 B.2 allows."""
        model = (self.model.model, self.model.lineage.model_sha256)
        if what == ("device",):
            parts: tuple[str, ...] = (*what, *model)
        elif what[0].endswith("series"):
            parts = (*what, self.series, *model)
        else:
            parts = (*what, self.series, str(self.revision), *model, *self.slices)
        return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"


def completed(header: Dataset) -> Dataset:
    """Give a header the elements that the objects need, empty if the slice lacks them, and its text in Unicode.

    highdicom takes some character sets of the standard only, such as none with an empty first value.
    """
    if "SpecificCharacterSet" in header:
        header.decode()
        header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    return header
