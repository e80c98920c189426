"""The check of a table: what is missing, twice, foreign or changed is found, and the rest is summed up."""

import csv
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from archive import checks, plans, rows, series
from archive.models import Model
from archive.plans import Plan
from archive.scoring import File, Scorer
from archive.sources import find_source
from chestct import tables
from chestct.buckets import Store
from chestct.card import DISCLAIMER
from chestct.file_errors import CannotGoOn
from chestct.tables import Row
from tests.archive.conftest import Fill
from tests.dicom import dicom_file
from tests.graphs import tiny_picture
from tests.server import ROOT
from tests.small_disk import SmallDisk


@pytest.fixture
def place(tmp_path: Path, fill: Fill, model: Model, scorer: Scorer) -> str:
    """A finished table of 40 files in 5 parts, of which three are DICOM files of two series."""
    fill(tmp_path / "in", 37)
    for name, uid, label in (("x1.dcm", "1.2.1", 0), ("x2.dcm", "1.2.1", 2), ("x3.dcm", "1.2.2", 2)):
        grey = tiny_picture(label)[:, :, 0]
        (tmp_path / "in" / name).write_bytes(dicom_file(grey, SeriesInstanceUID=uid))
    source = find_source(str(tmp_path / "in"))
    out = Store(str(tmp_path / "out"), make=True)
    plan = plans.make(source, out, model, by_series=True, part_rows=8)
    for part in plans.parts(plan, out):
        found = list(scorer.score(File(file.name, partial(source.read, file)) for file in part.files))
        store(out.place, part.number, found, model)
    return out.place


def store(place: str, part: int, found: list[Row], model: Model) -> None:
    content = tables.to_parquet(tables.to_batch(found, rows.schema(model.card.classes)))
    Store(place).put(plans.part_name(part), content)


def read(place: str, part: int) -> list[Row]:
    (found,) = tables.read(Path(place, plans.part_name(part)), 500)
    return found


def check(place: str, csv_file: Path | None = None) -> checks.Check:
    return checks.check(load(place), place, csv_file)


def load(place: str) -> Plan:
    return plans.load(Store(place))


def test_a_complete_table_is_summed_up(place: str, model: Model) -> None:
    result = check(place)
    lines = list(result.lines())
    assert result.complete
    assert lines[0] == "40 files, 40 rows: 0 missing, 0 twice, 0 of no planned file"
    assert "errors: undecodable_image 1" in lines
    assert any(line.startswith(f"model: {model.tag}, ") for line in lines)
    assert f"series: 2, in {place}/series.parquet. A summary of single slices, and no diagnosis. {DISCLAIMER}" in lines
    assert lines[-1] == DISCLAIMER
    assert sum(result.decisions.values()) == 39 == sum(result.labels.values())


def test_each_series_has_a_row(place: str, model: Model) -> None:
    check(place)
    (found,) = tables.read(Path(place, checks.SERIES), 500)
    first, second = found
    assert (first["series"], first["files"], second["series"], second["files"]) == ("1.2.1", 2, "1.2.2", 1)
    cancer = {row["file"]: row["any_cancer"] for row in read(place, 4)}
    normal = model.card.classes.index("normal")
    assert normal == 2
    assert (first["highest_file"], first["highest_any_cancer"]) == ("x1.dcm", cancer["x1.dcm"])
    assert {row["note"] for row in found} == {series.NOTE}


def drop(found: list[Row]) -> list[Row]:
    return found[1:]


def double(found: list[Row]) -> list[Row]:
    return [*found, found[2], found[2]]


def replace(found: list[Row]) -> list[Row]:
    return [{**found[0], "file": "another.png"}, *found[1:]]


def score_by_another_model(found: list[Row]) -> list[Row]:
    return [{**found[0], "model_sha256": "0" * 64}, *found[1:]]


@pytest.mark.parametrize(
    ("change", "counts", "words"),
    [
        (drop, (1, 0, 0), "1 missing, 0 twice, 0 of no planned file, 0 of another model"),
        (double, (0, 2, 0), "0 missing, 2 twice, 0 of no planned file, 0 of another model"),
        (replace, (1, 0, 1), "1 missing, 0 twice, 1 of no planned file, 0 of another model"),
        (score_by_another_model, (0, 0, 0), "0 missing, 0 twice, 0 of no planned file, 1 of another model"),
    ],
)
def test_a_row_that_was_changed_by_hand_is_found(
    place: str, model: Model, change: Callable[[list[Row]], list[Row]], counts: tuple[int, ...], words: str
) -> None:
    store(place, 3, change(read(place, 3)), model)
    result = check(place)
    assert (result.missing, result.twice, result.foreign) == counts
    assert result.problems == [f"{place}/parts/part-000003.parquet: {words}"]


def test_parts_that_are_gone_broken_or_strange_are_found(place: str) -> None:
    Path(place, plans.part_name(1)).unlink()
    Path(place, plans.part_name(2)).write_bytes(b"no Parquet")
    Path(place, plans.PARTS, "copy.parquet").write_bytes(Path(place, plans.part_name(3)).read_bytes())
    result = check(place)
    assert (result.missing, result.twice, result.rows) == (16, 0, 24)
    assert [problem.partition(": ")[0].removeprefix(f"{place}/parts/") for problem in result.problems] == [
        *("part-000001.parquet", "part-000002.parquet", "copy.parquet"),
    ]


def test_the_table_is_written_as_csv_on_request(place: str, tmp_path: Path) -> None:
    check(place, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = [row for part in range(5) for row in read(place, part)]
    assert [row["file"] for row in found] == [row["file"] for row in expected]
    assert [float(row["any_cancer"] or "nan") for row in found] == pytest.approx(
        [float("nan") if row["any_cancer"] is None else row["any_cancer"] for row in expected], nan_ok=True
    )
    assert {row["disclaimer"] for row in found} == {DISCLAIMER}


def test_a_csv_file_that_can_not_be_written_is_one_line(place: str, tmp_path: Path) -> None:
    with pytest.raises(CannotGoOn, match=r"absent/table\.csv: No such file or directory"):
        check(place, tmp_path / "absent" / "table.csv")


def test_on_a_full_disk_the_last_csv_file_stays_and_nothing_else(place: str, small_disk: SmallDisk) -> None:
    """A process on the disk asks for the table, because the disk is mounted for it alone."""
    table, outside = small_disk.folder / "table.csv", small_disk.outside / "table.csv"
    outside.write_text("the last table")
    small_disk.fill()
    call = [sys.executable, "-m", "archive", "score", "check", place, "--csv", str(table)]
    on_it = small_disk.command(*call, cwd=ROOT)
    done = subprocess.run(on_it, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {table}: No space left on device\n"
    assert outside.read_text() == "the last table"
    assert small_disk.files() == ["table.csv"]
    small_disk.free()
    assert subprocess.run(on_it, capture_output=True, timeout=300, check=False).returncode == 0
    assert len(outside.read_text().splitlines()) == 1 + sum(len(read(place, part)) for part in range(5))
    assert small_disk.files() == ["table.csv"]


def test_a_pipe_gets_the_csv_file_as_it_comes(place: str, tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.extend(pipe.read_text().splitlines()))
    reader.start()
    check(place, pipe)
    reader.join()
    assert len(found) == 1 + sum(len(read(place, part)) for part in range(5))
    assert [path.name for path in tmp_path.iterdir() if "table" in path.name or "pipe" in path.name] == ["pipe"]
