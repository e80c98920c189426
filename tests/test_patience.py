"""A test's bounds on time are for hangs alone, so a slow machine keeps them."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.server import ROOT
from tests.waiting import PATIENCE

ASKING = {"httpx.get", "httpx.post", "httpx.put", "httpx.request", "httpx.Client"}
"""What waits five seconds for each answer unless it is told otherwise."""
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if "container" not in path.parts]


def limits(path: Path) -> Iterator[tuple[str, ast.expr | None]]:
    """The place of each request of a file, and how long it may take; None if the library decides."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ASKING:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            yield f"{path.relative_to(ROOT)}:{node.lineno}", given.get("timeout")


def test_no_request_of_a_test_gives_up_on_a_slow_machine() -> None:
    found = [limit for path in TESTS for limit in limits(path)]
    assert len(found) > 20
    hasty = [
        place
        for place, limit in found
        if limit is None or (isinstance(limit, ast.Constant) and float(limit.value) < PATIENCE)  # type: ignore[arg-type]
    ]
    assert hasty == []
