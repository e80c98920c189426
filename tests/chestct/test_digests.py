"""SHA256SUMS is what sha256sum writes and reads, and names a changed file."""

import hashlib
from pathlib import Path

import pytest

from chestct.digests import SUMS, Altered, check_sums, write_sums

FILE = "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_bytes(b"as it was made")
    (tmp_path / "card.json").write_bytes(b"{}")
    write_sums(tmp_path, FILE, "card.json")
    return tmp_path


def test_the_list_is_in_the_form_of_sha256sum(folder: Path) -> None:
    digest = hashlib.sha256(b"as it was made").hexdigest()
    assert (folder / SUMS).read_text("utf-8") == f"{digest}  {FILE}\n{hashlib.sha256(b'{}').hexdigest()}  card.json\n"
    assert sorted(path.name for path in folder.iterdir()) == [SUMS, "card.json", FILE]
    check_sums(folder, FILE, "card.json")


def test_a_changed_file_is_named_with_both_digests_in_one_line(folder: Path) -> None:
    (folder / FILE).write_bytes(b"as it was mad3")
    with pytest.raises(Altered) as caught:
        check_sums(folder, FILE)
    message = str(caught.value)
    assert FILE in message
    assert "\n" not in message
    for content in (b"as it was made", b"as it was mad3"):
        assert hashlib.sha256(content).hexdigest() in message


@pytest.mark.parametrize("lines", ["", "\n", "no digest\n", "\udcff\n", f"{'ab' * 32}  other\n", f"  {FILE}\n"])
def test_a_list_without_the_file_is_refused(folder: Path, lines: str) -> None:
    (folder / SUMS).write_bytes(lines.encode("utf-8", "surrogateescape"))
    with pytest.raises(Altered, match="expected"):
        check_sums(folder, FILE)


def test_binary_marks_and_capitals_are_read_as_sha256sum_reads_them(folder: Path) -> None:
    (folder / SUMS).write_text(f"{hashlib.sha256(b'as it was made').hexdigest().upper()} *{FILE}\n", encoding="utf-8")
    check_sums(folder, FILE)
