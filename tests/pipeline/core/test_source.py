"""Which code a stage runs, and which changes of it count."""

import pytest

from pipeline.core import source

CODE = '''"""Adds."""

ONE = 1
"""A number."""


def add(a: int) -> int:
    """Add one."""
    return a + ONE  # by one
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# by one", "# by a number"),
        ('"""Adds."""', '"""Adds numbers."""'),
        ('"""A number."""\n', ""),
        ('    """Add one."""\n', ""),
        ("return a + ONE", "return (\n        a + ONE\n    )"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old: str, new: str) -> None:
    assert old in CODE
    assert source.digest_of(CODE.replace(old, new)) == source.digest_of(CODE)


@pytest.mark.parametrize(("old", "new"), [("ONE = 1", "ONE = 2"), ("a + ONE", "ONE + a"), ("-> int", "-> float")])
def test_everything_else_counts(old: str, new: str) -> None:
    assert source.digest_of(CODE.replace(old, new)) != source.digest_of(CODE)


def test_a_function_without_more_than_a_docstring_stays_one() -> None:
    described, empty = 'def f() -> None:\n    """Do nothing."""\n', "def f() -> None:\n    pass\n"
    assert source.digest_of(described) == source.digest_of(empty)


def test_a_stage_is_described_by_what_computes_and_not_by_what_keeps_records() -> None:
    modules = source.modules_of("train")
    assert {"pipeline/train.py", "pipeline/network/fitting.py", "chestct/standard_picture.py"} <= set(modules)
    assert "pipeline/core/tracking.py" in modules
    assert "pipeline/trust.py" not in modules
    described = dict(line.split() for line in source.describe("train").splitlines())
    assert described.keys() < {path for path in modules if not path.startswith("pipeline/core/")}
    assert "chestct/card.py" in modules
    assert "chestct/card.py" not in described  # pipeline/core/ alone imports it there
    fitting = (source.ROOT / "pipeline/network/fitting.py").read_text(encoding="utf-8")
    assert described["pipeline/network/fitting.py"] == source.digest_of(fitting)
