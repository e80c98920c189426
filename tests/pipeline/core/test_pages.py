"""The part of a page that a command writes."""

from pipeline.core.pages import replace_part

PAGE = "Before.\n<!-- begin of what `make it` writes -->\nold\n<!-- end of what `make it` writes -->\nAfter.\n"


def test_only_the_part_of_the_command_changes() -> None:
    assert replace_part(PAGE, "make it", "new\n") == PAGE.replace("old", "new")
    assert PAGE in replace_part(PAGE, "make another", "new\n")


def test_a_page_without_markers_gets_them_at_its_end_once() -> None:
    page = replace_part("Before.\n", "make it", "old\n")
    assert page == PAGE.removesuffix("After.\n")
    assert replace_part(page, "make it", "old\n") == page
