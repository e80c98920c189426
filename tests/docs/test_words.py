"""docs.words: what it reports and what it accepts."""

import pytest

from docs.words import AVOID, LONGEST, MEAN, problems, sentences


def words(count: int) -> str:
    return " ".join(["word"] * count)


def test_a_sentence_may_have_forty_words_and_no_more() -> None:
    short = f"One. Two. Three. {words(LONGEST)}."
    assert list(problems(f"# Title\n\n{short}\n")) == []
    ((line, problem),) = problems(f"# Title\n\n{short}\n{words(LONGEST + 1)}.\n")
    assert line == 4
    assert problem.startswith(f"a sentence of {LONGEST + 1} words")


def test_a_page_may_have_twenty_words_a_sentence_on_average_and_no_more() -> None:
    assert list(problems(f"{words(MEAN)}. {words(MEAN)}.")) == []
    assert [line for line, _ in problems(f"{words(MEAN)}. {words(MEAN + 1)}.")] == [1]


@pytest.mark.parametrize("phrase", AVOID)
def test_a_phrase_to_avoid_is_found_wherever_the_line_breaks(phrase: str) -> None:
    broken = phrase.replace(" ", "\n").capitalize()
    assert [line for line, _ in problems(f"Plain.\n\n| It | {phrase} |\n\nIt {broken}")] == [3, 5]
    assert list(problems(f"A `{phrase}`.\n\n```sh\n{phrase}\n```\n")) == []


def test_a_part_of_a_word_is_no_phrase() -> None:
    assert list(problems("A renewal anewed, a page noted thatched.")) == []


def test_items_are_sentences_of_their_own_and_tables_headings_and_code_are_none() -> None:
    page = """# A heading. Of two

First, with `a.b` and 0.5
and more. Second ... goes on (so it is.)
- [ ] An item
- Another
  goes on

| a table. | x |
<!-- a comment.
of two lines -->

    a block of code. It counts not.

```sh
more code.
```
![A picture.](a.png)
Last
"""
    assert list(sentences(page)) == [
        (3, "First, with `a.b` and 0.5 and more."),
        (4, "Second ... goes on (so it is.)"),
        (5, "An item"),
        (6, "Another goes on"),
        (19, "Last"),
    ]


@pytest.mark.parametrize("sentence", ["Who asks waits.", "Where it fails, it ends.", "So is a tie.", "Else it ends."])
def test_a_statement_begins_with_its_subject_or_a_plain_condition(sentence: str) -> None:
    assert [line for line, _ in problems(f"Plain words.\n\n{sentence}\n")] == [3]
    assert list(problems(f"{sentence[:-1]}?")) == []


def test_words_that_only_look_like_an_archaism_may_begin_a_sentence() -> None:
    assert list(problems("Whole words. So a test looks. Where to begin is clear. Nor- is a prefix.")) == []
