"""Draws the audit's findings side by side in one picture, for a person to judge."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from chestct.card import DISCLAIMER
from pipeline.images.classes import class_names, titles
from pipeline.images.slices import Slice

GROUPS: Final = 64
"""Groups that are drawn in a section, at most. The heading says how many there are."""
IMAGES: Final = 14
"""Images of a group that are drawn side by side, at most. The next ones are in the next row."""

_SIDE: Final = 112
_GAP: Final = 8
_LINE: Final = 12
_TILE: Final = (_SIDE + _GAP, _SIDE + 3 * _LINE + 2 * _GAP)
_WIDTH: Final = IMAGES * _TILE[0] + 2 * _GAP
_HEADING: Final = 44
_PAPER, _INK, _BOX = 255, 30, 225


class Section(NamedTuple):
    title: str
    groups: Sequence[Sequence[Slice]]
    """The images of a group are drawn side by side."""


def draw(sections: Sequence[Section], title: str, path: Path) -> None:
    """Write the sheet to `path` as a grey PNG. Each image is labelled with its class, its split and its file name."""
    rows = [_heading(f"{title}. {DISCLAIMER}")]
    for section in sections:
        shown = f", {GROUPS} of them shown" if len(section.groups) > GROUPS else ""
        rows.append(_heading(f"{section.title}: {len(section.groups) or 'none'}{shown}"))
        left = _WIDTH
        parts = [part for group in section.groups[:GROUPS] for part in _divide(group)]
        for strip in map(_draw_part, parts):
            if left + strip.width > _WIDTH - _GAP:
                rows.append(Image.new("L", (_WIDTH, _TILE[1]), _PAPER))
                left = _GAP
            rows[-1].paste(strip, (left, 0))
            left += strip.width
    sheet = Image.new("L", (_WIDTH, sum(row.height for row in rows) + _GAP), _PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _heading(text: str) -> Image.Image:
    row = Image.new("L", (_WIDTH, _HEADING), _PAPER)
    ImageDraw.Draw(row).text((_GAP, _GAP), text, _INK, ImageFont.load_default(16))
    return row


def _divide(group: Sequence[Slice]) -> list[Sequence[Slice]]:
    return [group[start : start + IMAGES] for start in range(0, len(group), IMAGES)]


def _draw_part(part: Sequence[Slice]) -> Image.Image:
    strip = Image.new("L", (len(part) * _TILE[0], _TILE[1]), _PAPER)
    for index, item in enumerate(part):
        strip.paste(_draw_image(item), (index * _TILE[0], 0))
    box = (0, 0, strip.width - _GAP // 2, strip.height - _GAP // 2)
    ImageDraw.Draw(strip).rectangle(box, outline=_BOX)
    return strip


def _draw_image(item: Slice) -> Image.Image:
    """The image and three lines of text, which are cut at the tile's edge."""
    tile = Image.new("L", _TILE, _PAPER)
    tile.paste(Image.fromarray(item.pixels[:, :, 0]).resize((_SIDE, _SIDE)), (2, 2))
    title = titles()[class_names()[item.label]]
    lines = (title, f"{item.file.split}, scan {item.scan}", PurePosixPath(item.file.path).name)
    for number, line in enumerate(lines):
        ImageDraw.Draw(tile).text((2, _SIDE + 3 + number * _LINE), line, _INK, ImageFont.load_default(10))
    return tile
