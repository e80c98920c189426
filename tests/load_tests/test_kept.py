"""What a long command has measured is kept whole, for the same code alone."""

from pathlib import Path

import pytest

from load_tests.kept import keep, kept


def test_a_result_is_kept_for_what_it_is_about(tmp_path: Path) -> None:
    file = tmp_path / "build" / "part.json"
    assert kept(file, {"commit": "abc"}) is None
    keep(file, {"commit": "abc"}, ("fuzz", 1.5, [("hung", 0)]))
    assert kept(file, {"commit": "abc"}) == ["fuzz", 1.5, [["hung", 0]]]
    assert kept(file, {"commit": "abd"}) is None


def test_a_result_that_can_t_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "part.json"
    keep(file, {}, 1)
    with pytest.raises(TypeError):
        keep(file, {}, object())
    assert kept(file, {}) == 1
