"""The record of openings has a dated line for each."""

import json
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core import openings


def test_each_opening_adds_a_dated_line_and_is_told_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "openings.jsonl"
    none, one = (openings.record(path, model=name, images=3) for name in ("a", "b"))
    assert (none, [each["model"] for each in one]) == ([], ["a"])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["model"], line["images"]) for line in lines] == [("a", 3), ("b", 3)]
    opened = datetime.fromisoformat(lines[0]["opened"])
    assert abs((datetime.now(UTC) - opened).total_seconds()) < 600
