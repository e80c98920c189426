"""The files of a folder and of a listing: each once, in order, and refused if it changes after the plan."""

import os
from pathlib import Path

import pytest

from archive.sources import MOST_BYTES, Source, find_source, open_source, read_local
from chestct.buckets import Object
from chestct.file_errors import CannotGoOn, FileError

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")


def names(place: Path) -> list[str]:
    return [file.name for file in find_source(str(place)).files()]


def code(source: Source, file: Object) -> str:
    with pytest.raises(FileError) as caught:
        source.read(file)
    return caught.value.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "b" / "c").mkdir(parents=True)
    for name in ("z.png", "b/a.png", "b/c/d.dcm"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_has_each_file_once_in_the_order_of_the_names(folder: Path) -> None:
    source = find_source(str(folder))
    found = list(source.files())
    assert [file.name for file in found] == ["b/a.png", "b/c/d.dcm", "z.png"]
    assert [source.read(file) for file in found] == [b"b/a.png", b"b/c/d.dcm", b"z.png"]
    assert [open_source(source.kind, source.root).read(file) for file in found] == [b"b/a.png", b"b/c/d.dcm", b"z.png"]


def test_linked_files_count_linked_folders_and_pipes_do_not(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "z.png")
    (folder / "lost.png").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert names(folder) == ["b/a.png", "b/c/d.dcm", "link.png", "lost.png", "z.png"]
    source = find_source(str(folder))
    assert code(source, Object("lost.png", -1, "")) == "file_missing"
    assert code(source, Object("pipe", -1, "")) == "file_unreadable"


def test_a_name_that_is_no_utf_8_is_read(folder: Path) -> None:
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    (folder / name).write_bytes(b"x")
    source = find_source(str(folder))
    (found,) = (file for file in source.files() if file.name == name)
    assert source.read(found) == b"x"


@needs_user
def test_an_unreadable_folder_ends_the_plan(folder: Path) -> None:
    (folder / "b").chmod(0)
    with pytest.raises(CannotGoOn, match=r"in/b: Permission denied"):
        names(folder)


def test_a_folder_that_goes_away_ends_the_plan(folder: Path) -> None:
    files = find_source(str(folder)).files()
    (folder / "b" / "c" / "d.dcm").unlink()
    (folder / "b" / "c").rmdir()
    assert next(files).name == "b/a.png"
    with pytest.raises(CannotGoOn, match=r"in/gone: No such file or directory; each of its files needs a row"):
        list(find_source(str(folder))._walk(str(folder / "gone")))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"other content"),
        lambda path: os.utime(path, ns=(1, 1)),
    ],
    ids=["content", "time"],
)
def test_a_file_that_changes_after_the_plan_is_an_error(folder: Path, change: object) -> None:
    source = find_source(str(folder))
    planned = list(source.files())[-1]
    change(folder / "z.png")  # type: ignore[operator]
    assert code(source, planned) == "file_changed"


def test_files_that_are_gone_or_too_large_are_errors(folder: Path) -> None:
    source = find_source(str(folder))
    with (folder / "z.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    planned = list(source.files())
    assert code(source, planned[2]) == "file_too_large"
    (folder / "b" / "a.png").unlink()
    assert code(source, planned[0]) == "file_missing"
    assert code(source, Object("b/a.png/x", -1, "")) == "file_missing"
    assert code(source, Object("b", -1, "")) == "file_unreadable"
    assert code(source, Object("a\0b", -1, "")) == "file_unreadable"


def test_a_file_without_a_planned_version_is_read_as_it_is(folder: Path) -> None:
    assert read_local(str(folder / "z.png"), Object("z.png", -1, "")) == b"z.png"


def test_a_listing_names_files_by_its_own_folder_or_in_full(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"in/z.png\r\n\n{folder}/b/a.png\nin/absent.png\n")
    source = find_source(str(tmp_path / "list.txt"))
    found = list(source.files())
    assert [file.name for file in found] == ["in/z.png", f"{folder}/b/a.png", "in/absent.png"]
    assert [source.read(file) for file in found[:2]] == [b"z.png", b"b/a.png"]
    assert code(source, found[2]) == "file_missing"


@pytest.mark.parametrize(
    ("content", "words"), [(b"a.png\nb.png\na.png\n", "it names 'a.png' twice"), (b"\x7fELF\0\0", "it is no text")]
)
def test_a_listing_that_can_not_be_right_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(CannotGoOn, match=words):
        names(tmp_path / "list.txt")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotGoOn, match="no such folder, zip or listing"):
        find_source(str(tmp_path / "absent"))
