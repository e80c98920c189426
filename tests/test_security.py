"""docs/explanation/security.md names a test for each threat, and the pins have hashes."""

import re
from pathlib import Path

import pytest

from tests.server import ROOT

PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!threat|---)(.+?) \|.*\| (.+?) \|$", PAGE, re.MULTILINE)


def test_every_threat_has_a_test() -> None:
    assert len(ROWS) > 40
    assert [threat for threat, test in ROWS if not re.fullmatch(r"`tests/\S+\.py::test_\w+`", test)] == []


@pytest.mark.parametrize("name", [test.strip("`") for _, test in ROWS])
def test_the_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_every_requirement_is_pinned_by_hash(path: Path) -> None:
    requirements = re.split(r"\n(?=[a-z0-9])", path.read_text(encoding="utf-8"))
    assert len(requirements) > 10
    for requirement in requirements:
        assert re.match(r"[\w.\[\],-]+==", requirement)
        assert "--hash=sha256:" in requirement
