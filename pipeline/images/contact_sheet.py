"""Draws the audit's findings side by side in one picture, for a person to judge."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from chestct.card import DISCLAIMER
from pipeline.images.classes import TITLES
from pipeline.images.slices import Slice

GROUPS: Final = 48
"""Groups that are drawn in a section, at most. The heading says how many there are."""
IMAGES: Final = 10
"""Images that are drawn of a group, at most."""

_ACROSS: Final = 14
_SIDE: Final = 112
_GAP: Final = 8
_LINE: Final = 12
_TILE: Final = (_SIDE + _GAP, _SIDE + 3 * _LINE + 2 * _GAP)
_WIDTH: Final = _ACROSS * _TILE[0] + 2 * _GAP
_HEADING: Final = 44
_PAPER, _INK, _BOX = 255, 30, 225
_NAMES: Final = tuple(TITLES.values())


class Section(NamedTuple):
    title: str
    groups: Sequence[Sequence[Slice]]
    """The images of a group are drawn side by side."""


def draw(sections: Sequence[Section], title: str, path: Path) -> None:
    """Write the sheet to `path` as a grey PNG. Each image is labelled with its class, its split and its file name."""
    places = [_arrange(section) for section in sections]
    height = _HEADING + sum(_HEADING + rows * _TILE[1] for _, rows in places) + _GAP
    sheet = Image.new("L", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(10)
    pen.text((_GAP, _GAP), f"{title}. {DISCLAIMER}", _INK, large)
    top = _HEADING
    for section, (tiles, rows) in zip(sections, places, strict=True):
        shown = f", {GROUPS} of them shown" if len(section.groups) > GROUPS else ""
        pen.text((_GAP, top + _GAP), f"{section.title}: {len(section.groups) or 'none'}{shown}", _INK, large)
        top += _HEADING
        for column, row, span, group in tiles:
            _draw_group(sheet, (_GAP + column * _TILE[0], top + row * _TILE[1]), span, group, small)
        top += rows * _TILE[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _arrange(section: Section) -> tuple[list[tuple[int, int, int, Sequence[Slice]]], int]:
    """The column, row and width in tiles of each group that is drawn, and the number of rows."""
    tiles, column, row = [], 0, 0
    for group in section.groups[:GROUPS]:
        span = min(len(group), IMAGES)
        if column + span > _ACROSS:
            column, row = 0, row + 1
        tiles.append((column, row, span, group))
        column += span
    return tiles, row + 1 if tiles else 0


def _draw_group(
    sheet: Image.Image,
    corner: tuple[int, int],
    span: int,
    group: Sequence[Slice],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = corner
    pen.rectangle((left, top, left + span * _TILE[0] - _GAP // 2, top + _TILE[1] - _GAP // 2), outline=_BOX)
    for index, item in enumerate(group[:span]):
        x, y = left + index * _TILE[0] + 2, top + 2
        sheet.paste(Image.fromarray(item.pixels[:, :, 0]).resize((_SIDE, _SIDE)), (x, y))
        more = f" (+{len(group) - span} more)" if index == span - 1 and len(group) > span else ""
        lines = (_NAMES[item.label], item.file.split + more, PurePosixPath(item.file.path).name)
        for number, line in enumerate(lines):
            pen.text((x, y + _SIDE + 1 + number * _LINE), _shorten(line, font), _INK, font)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= _SIDE:
        return text
    while font.getlength(f"{text}...") > _SIDE:
        text = text[:-1]
    return f"{text}..."
