"""Rows become Parquet files that other libraries read, and a broken file is no crash."""

from pathlib import Path

import pyarrow.parquet
import pytest

from chestct import tables
from chestct.tables import COUNT, NUMBER, TEXT, Unreadable

SCHEMA = tables.schema({"text": TEXT, "number": NUMBER, "count": COUNT}, {"note": "words"})
ROWS = [{"text": "größe", "number": 0.5, "count": 3}, {"text": "b"}, {"count": 2**40}]


def test_rows_come_back_with_nulls(tmp_path: Path) -> None:
    content = tables.to_parquet(tables.to_batch(ROWS, SCHEMA))
    expected = [{"text": None, "number": None, "count": None, **row} for row in ROWS]
    assert list(tables.read(content, 2)) == [expected[:2], expected[2:]]
    (tmp_path / "a.parquet").write_bytes(content)
    assert list(tables.read(tmp_path / "a.parquet", 10)) == [expected]


def test_other_libraries_read_the_file_with_its_note(tmp_path: Path) -> None:
    tables.write((tables.to_batch([row], SCHEMA) for row in ROWS), SCHEMA, tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column("text").to_pylist() == ["größe", "b", None]
    assert table.schema.metadata[b"note"] == b"words"


@pytest.mark.parametrize("cut", [0, 3, 100])
def test_a_file_that_is_cut_off_is_unreadable_and_stderr_says_nothing(
    tmp_path: Path, cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    content = tables.to_parquet(tables.to_batch(ROWS, SCHEMA))[:cut]
    (tmp_path / "a.parquet").write_bytes(content)
    for file in (content, tmp_path / "a.parquet"):
        with pytest.raises(Unreadable, match="no Parquet file"):
            list(tables.read(file, 10))
    assert capfd.readouterr() == ("", "")
