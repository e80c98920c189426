"""`python -m docs.words [PAGE ...]`: checks README, docs/ and the other pages for plain language.

Sentences must be short, and must not use phrases that have a plainer alternative.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
LONGEST: Final = 40
"""Most words in a sentence."""
MEAN: Final = 20
"""Most words in a page's sentences on average."""
AVOID: Final = {
    "all the same": "still",
    "and/or": "or",
    "anew": "again",
    "as well as": "and",
    "chose nothing": "what was done with it",
    "come back later": "be refused with 429",
    "due to the fact that": "because",
    "e.g.": "for example",
    "etc.": "the rest of the list, or nothing",
    "herein": "here",
    "i.e.": "that is",
    "in order to": "to",
    "it should be noted": "nothing",
    "leverage": "use",
    "note that": "nothing",
    "obviously": "nothing",
    "of course": "nothing",
    "prior to": "before",
    "respectively": "two sentences",
    "simply": "nothing",
    "nobody but": "only",
    "split-conformal": "calibrated out of fold, without a guarantee",
    "stands beside": "is beside",
    "stands for": "is",
    "stands in the": "is in the",
    "the former": "its name",
    "the latter": "its name",
    "thereby": "so",
    "therein": "in it",
    "thereof": "of it",
    "told to come back": "refused with 429",
    "utilise": "use",
    "utilize": "use",
    "whereby": "by which",
    "where it is none": "if it is not",
    "where none": "if none",
    "where nothing": "if nothing",
    "where that": "if that",
    "where there is no": "if there is no",
    "whoever": "a client that",
    "would else": "would otherwise",
}
"""Phrases to avoid, each with what to write instead."""
STARTS: Final = {
    r"Who\b": "name the clients or people, then `that`",
    r"Where (?:a|an|it|its|no|one|that|the|they|this)\b": "If",
    r"So (?:is|are|do|does|has|have) ": "put the subject first",
    r"(?:Nor|Only now|Only then|Not so) ": "put the subject first",
    r"Else\b": "Otherwise",
}
"""Regular expressions of how no statement begins, each with what to write instead. A question may."""


def problems(text: str) -> Iterator[tuple[int, str]]:
    """Yield each problem of a Markdown page: its line, counted from 1, and a message."""
    counts = []
    for line, sentence in sentences(text):
        counts.append(sum(bool(re.search(r"\w", word)) for word in sentence.split()))
        if counts[-1] > LONGEST:
            yield line, f"a sentence of {counts[-1]} words, {LONGEST} at most: {sentence[:60]}..."
        for start, better in STARTS.items():
            if re.match(start, sentence) and not sentence.endswith("?"):
                yield line, f'"{sentence[:30]}...": write {better}'
    if counts and (mean := sum(counts) / len(counts)) > MEAN:
        yield 1, f"{mean:.1f} words in a sentence on average, {MEAN} at most"
    prose = re.sub(r"`[^`]*`", _blank, _without_code(text))
    for phrase, better in AVOID.items():
        pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)".replace(r"\ ", r"\s+")
        for found in re.finditer(pattern, prose, re.IGNORECASE):
            yield prose.count("\n", 0, found.start()) + 1, f'"{phrase}": write {better}'


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a page with their first line. Skips tables, headings and code."""
    paragraph: list[tuple[int, str]] = []
    for number, line in enumerate([*_without_code(text).splitlines(), ""], 1):
        item = re.match(r"\s*(?:[-*>]|\d+\.) (?:\[.\] )?", line)
        other = re.match(r"\s*(?:#|\||!\[|$)", line)
        if item or other:
            yield from _split(paragraph)
            paragraph = []
        if not other:
            paragraph += [(number, word) for word in line[item.end() if item else 0 :].split()]


def _split(words: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a paragraph. A full stop, exclamation or question mark ends one; an ellipsis does not."""
    begin = 0
    for end, (_, word) in enumerate(words, 1):
        if end == len(words) or re.search(r"(?<!\.\.)[.!?][)\"'*_]*$", word):
            yield words[begin][0], " ".join(word for _, word in words[begin:end])
            begin = end


def _without_code(text: str) -> str:
    """Replace blocks of code and comments with blank lines."""
    text = re.sub(r"^```.*?^```|<!--.*?-->", _blank, text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<=\n\n)(?: {4}\S.*\n)+", _blank, text)


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.words", description=__doc__)
    parser.add_argument("pages", type=lambda name: Path(name).resolve(), nargs="*", help="default: all")
    pages = parser.parse_args().pages or PAGES
    lines = [
        f"{page.relative_to(ROOT)}:{line}: {words}"
        for page in pages
        for line, words in problems(page.read_text(encoding="utf-8"))
    ]
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
