"""Answers for a few files as a table, as JSON and as CSV."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest

from archive import predicting
from archive.models import Model
from chestct.card import DISCLAIMER
from chestct.image import encode_png
from tests.graphs import narrow_picture, tiny_picture


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    (tmp_path / "a.png").write_bytes(encode_png(tiny_picture(1)[:, :, 0]))
    (tmp_path / "b.png").write_bytes(encode_png(narrow_picture()[:, :, 0]))
    (tmp_path / "c.txt").write_bytes(b"no picture")
    return [str(tmp_path / name) for name in ("a.png", "b.png", "c.txt", "absent.png")]


def answers(model: Model, names: list[str], form: predicting.Form, errors: int = 2) -> str:
    stream = StringIO()
    assert predicting.predict(model, names, form, stream) == errors
    return stream.getvalue()


def test_a_table_has_a_line_a_file_and_the_disclaimer(model: Model, names: list[str]) -> None:
    head, accepted, rejected, broken, absent, _, last = answers(model, names, "table").splitlines()
    assert head.split()[:3] == ["file", "decision", "label"]
    assert accepted.startswith(f"{names[0]}   ")
    assert " accept " in accepted
    assert model.card.titles["large_cell_carcinoma"] in accepted
    assert rejected.split() == [names[1], "reject", "not_chest_ct"]
    assert "undecodable_image: expected a PNG or JPEG image or a DICOM file, got 10 bytes" in broken
    assert absent.endswith("file_missing: the file is not there")
    assert last == f"{model.tag}. {DISCLAIMER}"


def test_json_and_csv_have_the_tables_columns(model: Model, names: list[str]) -> None:
    found = json.loads(answers(model, names, "json"))
    assert (found["disclaimer"], found["model"]) == (DISCLAIMER, model.tag)
    rows = list(csv.DictReader(StringIO(answers(model, names, "csv"))))
    assert [row["file"] for row in rows] == [row["file"] for row in found["files"]] == names
    assert float(rows[0]["p_large_cell_carcinoma"]) == pytest.approx(found["files"][0]["p_large_cell_carcinoma"])
    assert (rows[1]["reasons"], rows[1]["label"], rows[3]["error"]) == ("not_chest_ct", "", "file_missing")


def test_no_errors_are_counted_if_each_file_has_an_answer(model: Model, names: list[str]) -> None:
    answers(model, names[:2], "table", errors=0)
