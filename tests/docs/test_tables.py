"""The generated tables of docs/reference/ are those that the code gives now, and each field has a meaning."""

import pytest

from docs.tables import PAGES, REFERENCE, in_page
from serving.settings import PREFIX, Settings


@pytest.mark.parametrize("name", PAGES)
def test_a_table_is_current(name: str) -> None:
    assert in_page(name) == (REFERENCE / name).read_text(encoding="utf-8"), "run python -m docs.tables"


def test_a_field_without_a_meaning_is_one_that_its_name_explains() -> None:
    page = in_page("http-api.md")
    unexplained = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert unexplained == ["request_id", "disclaimer"]


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in in_page("settings.md").splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    assert [row.split("`")[1] for row in rows] == [PREFIX + name.upper() for name in Settings.model_fields]
