"""The files in a zip: paths that lead out of it, bombs and broken files do no harm."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from archive.sources import MOST_BYTES, find_source
from chestct.buckets import Object
from chestct.file_errors import CannotGoOn, FileError


def make_zip(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def outcome(path: Path, name: str) -> bytes | str:
    source = find_source(str(path))
    (file,) = (file for file in source.files() if file.name == name)
    try:
        return source.read(file)
    except FileError as error:
        return error.code


def test_a_zip_has_its_files_without_its_folders(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ("b/", b""), ("b/x.png", b"x"), ("a.png", b"a"))
    source = find_source(str(path))
    found = list(source.files())
    assert [(file.name, source.read(file)) for file in found] == [("b/x.png", b"x"), ("a.png", b"a")]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "b/../../a.png", "..\\a.png", "C:/a.png"])
def test_a_path_out_of_the_zip_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", ("good.png", b"x"), (name, b"x"))
    with pytest.raises(CannotGoOn, match="leads out of the zip"):
        list(find_source(str(path)).files())


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = make_zip(tmp_path / "a.zip", ("a.png", b"x"), ("a.png", b"y"))
    with pytest.raises(CannotGoOn, match=r"it has 'a.png' twice"):
        list(find_source(str(path)).files())


def test_a_bomb_is_an_error_row_even_if_its_header_lies(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ("bomb.png", bytes(5 * MOST_BYTES)), ("a.png", b"x"))
    assert outcome(path, "bomb.png") == "file_too_large"
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(signature) + at
        assert struct.unpack_from("<I", data, place) == (5 * MOST_BYTES,)
        struct.pack_into("<I", data, place, 100)
    path.write_bytes(data)
    assert outcome(path, "bomb.png") == "file_unreadable"  # 100 bytes do not have the checksum
    assert outcome(path, "a.png") == b"x"


def test_files_that_can_not_be_read_are_error_rows(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ("a.png", b"x" * 1000), ("b.png", b"y" * 1000), method=zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"x" * 1000, b"x" * 999 + b"z"))
    assert outcome(path, "a.png") == "file_unreadable"
    encrypted = bytearray(data)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[data.index(signature) + at] |= 1
    path.write_bytes(encrypted)
    assert outcome(path, "a.png") == "file_unreadable"
    assert outcome(path, "b.png") == b"y" * 1000
    assert outcome(make_zip(tmp_path / "b.zip", ("a", b"x"), method=zipfile.ZIP_LZMA), "a") == "file_unreadable"


@pytest.mark.parametrize("name", [".", "./.", ""])
def test_a_path_that_names_no_file_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", ("./", b""), ("x", b"x"))
    assert [file.name for file in find_source(str(path)).files()] == ["x"]
    path.write_bytes(in_a_zip(name.encode()))
    with pytest.raises(CannotGoOn, match="names no file"):
        list(find_source(str(path)).files())


def test_a_file_of_an_impossible_size_is_planned_and_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(in_a_zip(b"x", size=(1 << 64) - 1))
    source = find_source(str(path))
    (file,) = source.files()
    assert 0 < file.size < 1 << 63  # as large as a table can hold
    with pytest.raises(FileError) as failed:
        source.read(file)
    assert failed.value.code == "file_unreadable"


def in_a_zip(name: bytes, size: int = 1) -> bytes:
    """A zip of one byte, x, with this name and size in its directory."""
    sizes = struct.pack("<HHQQ", 1, 16, size, size)
    local = struct.pack("<IHHHHHIIIHH", 0x0403_4B50, 20, 0, 0, 0, 0x21, zlib.crc32(b"x"), 1, 1, len(name), 0) + name
    numbers = (0x0201_4B50, 45, 45, 0, 0, 0, 0x21, zlib.crc32(b"x"), 0xFFFF_FFFF, 0xFFFF_FFFF, len(name), len(sizes))
    directory = struct.pack("<IHHHHHHIIIHH10xI", *numbers, 0) + name + sizes
    end = struct.pack("<IHHHHIIH", 0x0605_4B50, 0, 0, 1, 1, len(directory), len(local) + 1, 0)
    return local + b"x" + directory + end


def test_a_zip_that_changes_after_the_plan_gives_error_rows(tmp_path: Path) -> None:
    planned = list(find_source(str(make_zip(tmp_path / "a.zip", ("a", b"x"), ("b", b"y")))).files())
    make_zip(tmp_path / "a.zip", ("a", b"z"))
    codes = []
    for file in planned:
        with pytest.raises(FileError) as caught:
            find_source(str(tmp_path / "a.zip")).read(file)
        codes.append(caught.value.code)
    assert codes == ["file_changed", "file_missing"]


def test_a_broken_zip_ends_the_command(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ("a", b"x"))
    source = find_source(str(path))
    path.write_bytes(b"PK\x05\x06")
    with pytest.raises(CannotGoOn, match=r"a\.zip: "):
        source.read(Object("a", -1, ""))
