"""The series of a DICOM file, and the row that sums it up."""

import numpy as np
import pytest

from archive import series
from chestct.card import DISCLAIMER
from chestct.tables import Row
from tests.dicom import dicom_file
from tests.graphs import tiny_picture

GREY = tiny_picture(0)[:, :, 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dicom_file(GREY, SeriesInstanceUID="1.2.840.99.1"), "1.2.840.99.1"),
        (dicom_file(GREY), None),
        (dicom_file(GREY, SeriesInstanceUID="1.2.840.99.1")[:-300], None),
        (b"no picture", None),
        (b"", None),
    ],
    ids=["with", "without", "cut", "text", "empty"],
)
def test_a_dicom_file_names_its_series(data: bytes, expected: str | None) -> None:
    assert series.uid(data) == expected


def test_a_text_that_is_no_uid_is_none() -> None:
    data = dicom_file(GREY, SeriesInstanceUID="1.2.840.99.1")
    assert series.uid(data.replace(b"1.2.840.99.1", b"<script>abcd")) is None


def row(uid: str | None, decision: str | None, cancer: float | None = None, *, label: str | None = "normal") -> Row:
    file = f"{decision}-{cancer}"
    return {"series": uid, "decision": decision, "label": label, "any_cancer": cancer, "file": file}


def test_a_series_has_its_counts_and_its_highest_slice() -> None:
    summary = series.Summary()
    for one in (
        row("1.2", "accept", 0.2),
        row("1.2", "refer", 0.7),
        row("1.2", "refer", 0.9, label=None),  # without a label the probabilities mean nothing
        row("1.2", "reject", 0.95, label=None),
        row("1.2", None, label=None),
        row("1.1", "accept", 0.1),
        row(None, "accept", 0.99),
    ):
        summary.add(one)
    first, second = summary.rows()
    assert (first["series"], first["files"], first["highest_any_cancer"]) == ("1.1", 1, 0.1)
    counts = {"files": 5, "errors": 1, "accept": 1, "refer": 2, "reject": 1}
    assert {name: second[name] for name in counts} == counts
    assert (second["highest_any_cancer"], second["highest_file"]) == (0.7, "refer-0.7")
    assert second["note"] == f"A summary of single slices, and no diagnosis. {DISCLAIMER}"
    assert np.isin(list(second), list(series.COLUMNS)).all()
