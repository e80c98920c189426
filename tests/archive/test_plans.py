"""A plan has each file once, and is refused for other files, another model or other options."""

import os
import re
from pathlib import Path

import pytest

from archive import plans
from archive.models import Model
from archive.plans import Plan
from archive.sources import find_source
from chestct.buckets import Store
from chestct.file_errors import CannotGoOn
from tests.archive.conftest import Fill


@pytest.fixture
def folder(tmp_path: Path, fill: Fill) -> Path:
    fill(tmp_path / "in", 50)
    return tmp_path / "in"


def plan(folder: Path, model: Model, **options: object) -> Plan:
    out = Store(str(folder.with_name("out")), make=True)
    return plans.make(find_source(str(folder)), out, model, **options)  # type: ignore[arg-type]


def planned_names(made: Plan, folder: Path) -> list[list[str]]:
    return [[file.name for file in part.files] for part in plans.parts(made, Store(str(folder.with_name("out"))))]


def test_a_plan_has_each_file_in_one_part(folder: Path, model: Model) -> None:
    made = plan(folder, model)
    assert (made.files, made.part_rows, made.parts) == (50, 16, 4)
    found = planned_names(made, folder)
    assert [len(names) for names in found] == [16, 16, 16, 2]
    assert [name for names in found for name in names] == sorted(path.name for path in folder.iterdir())


def test_names_of_any_bytes_come_back(folder: Path, model: Model) -> None:
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    (folder / name).write_bytes(b"x")
    assert any(name in names for names in planned_names(plan(folder, model), folder))


def test_the_same_plan_may_be_made_again(folder: Path, model: Model) -> None:
    assert plan(folder, model) == plan(folder, model)
    assert len(list(folder.with_name("out").iterdir())) == 2


def add(folder: Path) -> None:
    (folder / "new.png").write_bytes(b"x")


def remove(folder: Path) -> None:
    (folder / "00004.png").unlink()


def change(folder: Path) -> None:
    (folder / "00004.png").write_bytes(b"x")


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        (add, "it is for 50 files, now there are 51; the first that differs: new.png is new"),
        (remove, "it is for 50 files, now there are 49; the first that differs: 00004.png is gone"),
        (change, "it is for 50 files, now there are 50; the first that differs: 00004.png was changed"),
    ],
)
def test_a_plan_for_other_files_is_refused(folder: Path, model: Model, differ: object, words: str) -> None:
    plan(folder, model)
    differ(folder)  # type: ignore[operator]
    with pytest.raises(CannotGoOn, match=re.escape(words)):
        plan(folder, model)


def test_a_plan_for_another_model_or_place_or_with_other_options_is_refused(
    folder: Path, model: Model, fill: Fill
) -> None:
    plan(folder, model)
    with pytest.raises(CannotGoOn, match=rf"another plan: model is {model.tag}, not chestct:other"):
        plan(folder, model._replace(tag="chestct:other"))
    with pytest.raises(CannotGoOn, match="another plan: by_series is False, not True, part_rows is 16, not 7"):
        plan(folder, model, by_series=True, part_rows=7)
    fill(folder.with_name("in2"), 3)
    with pytest.raises(CannotGoOn, match=r"another plan: root is .*/in, not .*/in2"):
        plan(folder.with_name("in2"), model)


def test_no_files_and_no_plan_are_refused(tmp_path: Path, model: Model) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(CannotGoOn, match="there are no files"):
        plan(tmp_path / "in", model)
    with pytest.raises(CannotGoOn, match="has no plan; `chestct score plan IN"):
        plans.load(Store(str(tmp_path)))
    with pytest.raises(CannotGoOn, match="no such folder; `chestct score plan IN"):
        plans.find(str(tmp_path / "absent"))


def test_a_table_among_its_files_is_refused(folder: Path) -> None:
    for place in (folder / "out", folder, folder / "x" / ".." / "out"):
        with pytest.raises(CannotGoOn, match="its own files would be scored"):
            plans.check_apart(find_source(str(folder)), str(place))
    plans.check_apart(find_source(str(folder)), str(folder.with_name("in-out")))


def test_a_changed_plan_or_manifest_is_refused(folder: Path, model: Model) -> None:
    made = plan(folder, model)
    out = Store(str(folder.with_name("out")))
    out.put(made.manifest, b"other")
    with pytest.raises(CannotGoOn, match="is missing or was changed"):
        list(plans.parts(made, out))
    out.put(plans.PLAN, b"{}")
    with pytest.raises(CannotGoOn, match="was changed or is of another version"):
        plans.load(out)
