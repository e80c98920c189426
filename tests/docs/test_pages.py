"""Pages read alike on the site and on GitHub, and name the released model, places in the code, and variables."""

import ast
import re
from pathlib import Path

import pytest

from chestct.prediction import RULES
from chestct.store import CARD, tag_of
from docs.words import PAGES
from tests.server import ROOT

EXAMPLE_TAG = "chestct:0123456789abcdef"
MEASURED = re.compile(r"^\| model \| chestct:.*$", re.MULTILINE)
"""The model of a past measurement."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_table_and_a_heading_follow_an_empty_line(page: Path) -> None:
    """Otherwise the site shows a table as text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^(?!\||<!--|$).*\n(?:\||#+ ).*", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_the_released_model(page: Path) -> None:
    named = re.findall(r"chestct:[0-9a-f]{16}", MEASURED.sub("", page.read_text(encoding="utf-8")))
    assert set(named) <= {tag_of(ROOT / "release" / CARD), EXAMPLE_TAG}


def test_every_variable_of_make_is_in_the_table() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    table = page.partition("| variable | of | meaning |")[2].partition("\n\n")[0]
    names = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])}
    assert names == set(re.findall(r"^([A-Z\d_]+) +\?=", makefile, re.MULTILINE)) | {"UPGRADE"}


def test_the_places_in_the_log_s_example_are_those_functions() -> None:
    page = (ROOT / "docs/reference/logs-and-traces.md").read_text(encoding="utf-8")
    places = re.findall(r'"(serving/[\w/]+\.py):(\d+) (\w+)"', page)
    assert len(places) == 3
    for file, line, name in places:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert any(each.name == name and each.lineno <= int(line) <= (each.end_lineno or 0) for each in found), file


def test_the_table_of_rules_is_that_of_the_code() -> None:
    page = (ROOT / "docs/explanation/trust.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (refer|reject)\b", page, re.MULTILINE)
    assert rows == [(rule.name, rule.decision) for rule in RULES]


def test_every_code_of_an_error_is_in_the_table() -> None:
    sources = [path for folder in ("serving", "chestct") for path in (ROOT / folder).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    codes = set(re.findall(r'(?:bad_request|InvalidImage)\(\s*"(\w+)"', code))
    codes |= set(re.findall(r'RequestError\(\s*HTTPStatus\.\w+,\s*"(\w+)"', code))
    assert {"invalid_form", "unsupported_dicom", "body_too_large"} <= codes
    page = (ROOT / "docs/reference/http-api.md").read_text(encoding="utf-8")
    assert codes <= set(re.findall(r"`(\w+)`", page.partition("| status | codes | reason |")[2].partition("\n\n")[0]))


def test_every_picture_is_on_a_page() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert len(pictures) > 10
    assert [path for path in pictures if f"/{path.name})" not in shown and f"({path.name})" not in shown] == []


def test_the_help_of_a_command_says_how_to_run_it() -> None:
    folders = ("archive", "benchmarks", "dicom_node", "image", "load_tests", "pipeline", "serving")
    named = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if found := re.search(r"ArgumentParser\((?:\s*prog=\"(.+?)\")?", path.read_text(encoding="utf-8")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            named[module] = found[1]
    assert named.pop("archive.command") == "chestct"
    assert named.pop("pipeline.core.runner") is None, "the stage names it"
    assert len(named) > 15
    assert named == {module: f"python -m {module}" for module in named}
