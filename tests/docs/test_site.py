"""The site of `make docs` has every page and the medical disclaimer, and fetches nothing."""

from typing import Any

import yaml

from chestct.card import DISCLAIMER
from tests.server import ROOT

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(_pages(SITE["nav"])) == sorted(pages)


def test_every_page_has_the_disclaimer_and_fetches_nothing() -> None:
    assert SITE["copyright"] == DISCLAIMER
    assert SITE["theme"]["font"] is False
    assert "extra_javascript" not in SITE
    assert (ROOT / "docs" / SITE["extra_css"][0]).is_file()


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in _pages(part)]
