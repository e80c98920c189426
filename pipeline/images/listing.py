"""What a folder in Kaggle's layout holds: the images, and every other entry with the reason why it is not taken.

Nothing is passed over without a word: LEFT_OUT names each entry, and `summary` counts them in one line.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import TypeAdapter

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.images.classes import CLASSES, label_of
from pipeline.images.manifest import SPLITS

BESIDE: Final = "beside the folders train, valid and test"
HIDDEN: Final = "hidden or of the operating system"
UNKNOWN: Final = "folders of no class"
OUTSIDE: Final = "outside the class folders"
DEEPER: Final = "in a folder below a class folder"
DANGLING: Final = "links to nothing"
SPECIAL: Final = "neither file nor folder"
UNREADABLE: Final = "unreadable"
NO_IMAGE: Final = "neither PNG nor JPEG, by name and content"
SAME_NAME: Final = "named like another file, once its name is written in UTF-8"

_NO_LOSS: Final = frozenset({BESIDE, HIDDEN})
"""Reasons that take no image of the data set away."""
_BEGINNINGS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
_SYSTEMS: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_NAMED: Final = 5
"""Entries that the summary names for each reason."""


class Listing(NamedTuple):
    images: dict[str, Path]
    """Each image by its path below data/raw, `split/class folder/name`: the one below the source, in UTF-8."""
    left_out: dict[str, list[str]]
    """By reason, the entries that are not taken: their paths below the source, in UTF-8."""
    renamed: list[str]
    """The images whose names are not UTF-8 below the source."""

    @property
    def lost(self) -> int:
        """How many entries were not taken that may be images of the data set."""
        return sum(len(names) for reason, names in self.left_out.items() if reason not in _NO_LOSS)

    @property
    def summary(self) -> str:
        """Part of a line: how many entries are not taken or renamed and why, with a few of their names."""
        parts = {f"not taken, {reason}": names for reason, names in sorted(self.left_out.items())}
        if self.renamed:
            parts["renamed, since their names are not UTF-8"] = self.renamed
        named = "; ".join(f"{len(names)} {what} ({name_some(names)})" for what, names in parts.items())
        return f"{named}; all of them in {paths.LEFT_OUT}" if self.left_out else named

    def write(self) -> None:
        """Record what is not taken in LEFT_OUT."""
        paths.LEFT_OUT.parent.mkdir(parents=True, exist_ok=True)
        content = TypeAdapter(dict[str, list[str]]).dump_json(dict(sorted(self.left_out.items())), indent=1)
        paths.LEFT_OUT.write_bytes(content + b"\n")


def in_utf8(name: str) -> str:
    r"""A file name with each byte that is not UTF-8 written as `\xHH`; any other name as it is."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def name_some(names: list[str]) -> str:
    """The first names, quoted so that no name breaks the line, and the number of the others."""
    named = ", ".join(repr(name) for name in names[:_NAMED])
    return f"{named} and {len(names) - _NAMED} more" if len(names) > _NAMED else named


def list_source(folder: Path) -> Listing:
    """The images of every split and class in `folder`, and all that is there beside them.

    Raises DataError for a folder that can't be read.
    """
    listing = Listing({}, {}, [])
    for entry in _entries(folder):
        if entry.name in SPLITS and entry.is_dir():
            _list_split(listing, folder, entry)
        else:
            _leave(listing, folder, entry, HIDDEN if _is_hidden(entry.name) else BESIDE)
    return listing


def require_data_set(listing: Listing, folder: Path, max_left_out: float) -> None:
    """Raises DataError where `listing` of `folder` is no data set of all classes, or leaves too much behind."""
    where, beside = in_utf8(str(folder)), f"; {listing.summary}" if listing.lost else ""
    if unknown := listing.left_out.get(UNKNOWN):
        raise DataError(f"{where}: {name_some(unknown)}: the folder's name begins with none of {', '.join(CLASSES)}")
    for split in SPLITS:
        seen = {label_of(name.split("/")[1]) for name in listing.images if name.startswith(f"{split}/")}
        if not seen:
            raise DataError(f"{where}/{split}: the split is empty; expected a folder of images for each class{beside}")
        if missing := [name for label, name in enumerate(CLASSES) if label not in seen]:
            raise DataError(f"{where}/{split}: no images of {', '.join(missing)}{beside}")
    entries = len(listing.images) + listing.lost
    if listing.lost > max_left_out * entries:
        raise DataError(
            f"{where}: {listing.lost} of {entries} entries would not be taken, more than data.max_left_out allows "
            f"({max_left_out:g}); {listing.summary}; mend them, or raise data.max_left_out in {paths.PARAMS}"
        )


def _list_split(listing: Listing, folder: Path, split: Path) -> None:
    for entry in _entries(split):
        if _is_hidden(entry.name):
            _leave(listing, folder, entry, HIDDEN)
        elif not entry.is_dir():
            _leave(listing, folder, entry, _why_not_taken(entry) or OUTSIDE)
        elif label_of(entry.name) is None:
            _leave(listing, folder, entry, UNKNOWN)
        else:
            _list_class(listing, folder, entry)


def _list_class(listing: Listing, folder: Path, class_folder: Path) -> None:
    for entry in _entries(class_folder):
        if _is_hidden(entry.name):
            _leave(listing, folder, entry, HIDDEN)
        elif entry.is_dir():
            for deeper in _below(entry):
                _leave(listing, folder, deeper, DEEPER)
        elif reason := _why_not_taken(entry):
            _leave(listing, folder, entry, reason)
        elif (name := in_utf8(entry.relative_to(folder).as_posix())) in listing.images:
            _leave(listing, folder, entry, SAME_NAME)
        else:
            listing.images[name] = entry
            if name != entry.relative_to(folder).as_posix():
                listing.renamed.append(name)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{in_utf8(str(folder))}: the folder can't be read ({error.strerror})") from error


def _below(folder: Path) -> Iterator[Path]:
    """All files, links and empty folders below a folder, it too if it is empty, and what of it can't be read.

    Links are not followed.
    """
    unread: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unread.append(Path(error.filename))):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        yield from (Path(parent, name) for name in sorted(files + links))
        if not folders and not files:
            yield Path(parent)
    yield from unread


def _why_not_taken(path: Path) -> str | None:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            return SPECIAL
        with path.open("rb") as file:
            beginning = file.read(8)
        # What only its name calls an image is taken: the audit has it among the unreadable ones.
        return None if beginning.startswith(_BEGINNINGS) or path.suffix.lower() in _SUFFIXES else NO_IMAGE
    except OSError:
        return DANGLING if path.is_symlink() and not path.exists() else UNREADABLE


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEMS


def _leave(listing: Listing, folder: Path, entry: Path, reason: str) -> None:
    listing.left_out.setdefault(reason, []).append(in_utf8(entry.relative_to(folder).as_posix()))
