"""The pictures of the architecture are those that docs.pictures draws, and the files that they name exist."""

import re
from pathlib import Path

import pytest

from docs.pictures import IMAGE, PARTS, REQUEST, pictures
from tests.server import ROOT

NAMED = [*(box.file for box in PARTS.values()), *(file for _, file in (*REQUEST, *IMAGE))]


@pytest.mark.parametrize(("path", "text"), pictures().items(), ids=lambda value: getattr(value, "name", ""))
def test_a_picture_is_current(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run python -m docs.pictures"


def test_the_files_in_the_pictures_exist() -> None:
    files = {file for named in NAMED for file in re.findall(r"[\w/]+\.py|\w[\w/]*/(?= |$)", named)}
    assert len(files) > 25
    roots = (ROOT, ROOT / "serving", ROOT / "serving/http")
    assert [file for file in sorted(files) if not any((root / file).exists() for root in roots)] == []
