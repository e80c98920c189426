"""Replaces the part of a page that a command writes. The rest of the page is hand-written."""


def replace_part(page: str, command: str, text: str) -> str:
    """Return the page with `text` between the markers of `command`. A page without markers gets them at its end."""
    begin, end = (f"<!-- {word} of what `{command}` writes -->\n" for word in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{text}{end}{after}"
