"""Lists a folder in Kaggle's layout: the images, and every other entry with the reason why it is left out.

LEFT_OUT names every entry that is left out, and `summary` counts them in one line.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.images.classes import class_names, label_of
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
"""Reasons that do not lose an image of the data set."""
_SIGNATURES: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_NAMED: Final = 5
"""Number of entries that the summary names for each reason."""


@dataclass
class Listing:
    folder: Path
    """The source, in which all entries are."""
    images: dict[str, Path] = field(default_factory=dict)
    """Each image by its path below data/raw: `split/class folder/name`, in UTF-8."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """By reason, the entries that are left out: their paths below the source, in UTF-8."""
    renamed: list[str] = field(default_factory=list)
    """The images whose names in the source are not UTF-8."""

    @property
    def lost(self) -> int:
        """Number of left-out entries that may be images of the data set."""
        return sum(len(names) for reason, names in self.left_out.items() if reason not in _NO_LOSS)

    @property
    def summary(self) -> str:
        """Part of a line: the number of entries that are left out or renamed, the reasons, and a few names."""
        parts = {f"not taken, {reason}": names for reason, names in sorted(self.left_out.items())}
        if self.renamed:
            parts["renamed, since their names are not UTF-8"] = self.renamed
        named = "; ".join(f"{len(names)} {what} ({name_some(names)})" for what, names in parts.items())
        return f"{named}; all of them in {paths.LEFT_OUT}" if self.left_out else named

    def leave_out(self, entry: Path, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(in_utf8(entry.relative_to(self.folder).as_posix()))

    def write(self) -> None:
        """Write the entries that are left out to LEFT_OUT."""
        paths.LEFT_OUT.parent.mkdir(parents=True, exist_ok=True)
        content = TypeAdapter(dict[str, list[str]]).dump_json(dict(sorted(self.left_out.items())), indent=1)
        paths.LEFT_OUT.write_bytes(content + b"\n")


def in_utf8(name: str) -> str:
    r"""A file name in which each byte that is not UTF-8 is written as `\xHH`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def name_some(names: list[str]) -> str:
    """The first names, quoted so that none breaks the line, and the number of the remaining ones."""
    named = ", ".join(repr(name) for name in names[:_NAMED])
    return f"{named} and {len(names) - _NAMED} more" if len(names) > _NAMED else named


def list_source(folder: Path) -> Listing:
    """List the images of every split and class in `folder`, and all other entries.

    Raises DataError if a folder can't be read.
    """
    listing = Listing(folder)
    for entry in _entries(folder):
        if entry.name in SPLITS and entry.is_dir():
            _list_split(listing, entry)
        else:
            listing.leave_out(entry, HIDDEN if is_hidden(entry.name) else BESIDE)
    return listing


def require_data_set(listing: Listing, max_left_out: float) -> None:
    """Raise DataError if a split or class is missing, or if more than the share `max_left_out` is left out."""
    where, beside = in_utf8(str(listing.folder)), f"; {listing.summary}" if listing.lost else ""
    if unknown := listing.left_out.get(UNKNOWN):
        names = ", ".join(class_names())
        raise DataError(f"{where}: {name_some(unknown)}: the folder's name begins with none of {names}")
    for split in SPLITS:
        seen = {label_of(name.split("/")[1]) for name in listing.images if name.startswith(f"{split}/")}
        if not seen:
            raise DataError(f"{where}/{split}: the split is empty; expected a folder of images for each class{beside}")
        if missing := [name for label, name in enumerate(class_names()) if label not in seen]:
            raise DataError(f"{where}/{split}: no images of {', '.join(missing)}{beside}")
    entries = len(listing.images) + listing.lost
    if listing.lost > max_left_out * entries:
        raise DataError(
            f"{where}: {listing.lost} of {entries} entries would be left out, more than data.max_left_out allows "
            f"({max_left_out:g}); {listing.summary}; repair them, or raise data.max_left_out in {paths.PARAMS}"
        )


def _list_split(listing: Listing, split: Path) -> None:
    for entry in _entries(split):
        if is_hidden(entry.name):
            listing.leave_out(entry, HIDDEN)
        elif not entry.is_dir():
            listing.leave_out(entry, _why_no_image(entry) or OUTSIDE)
        elif label_of(entry.name) is None:
            listing.leave_out(entry, UNKNOWN)
        else:
            _list_class(listing, entry)


def _list_class(listing: Listing, class_folder: Path) -> None:
    for entry in _entries(class_folder):
        name = entry.relative_to(listing.folder).as_posix()
        if is_hidden(entry.name):
            listing.leave_out(entry, HIDDEN)
        elif entry.is_dir():
            for deeper in _below(entry):
                listing.leave_out(deeper, DEEPER)
        elif reason := _why_no_image(entry):
            listing.leave_out(entry, reason)
        elif in_utf8(name) in listing.images:
            listing.leave_out(entry, SAME_NAME)
        else:
            listing.images[in_utf8(name)] = entry
            if name != in_utf8(name):
                listing.renamed.append(in_utf8(name))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{in_utf8(str(folder))}: the folder can't be read ({error.strerror})") from error


def _below(folder: Path) -> Iterator[Path]:
    """All files, links, empty folders and unreadable folders in or below `folder`. Links are not followed."""
    unread: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unread.append(Path(error.filename))):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        yield from (Path(parent, name) for name in sorted(files + links))
        if not folders and not files:
            yield Path(parent)
    yield from unread


def _why_no_image(path: Path) -> str | None:
    """The reason why a file is left out, or None for an image. An image has the suffix or the signature of one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return SPECIAL
        with path.open("rb") as file:
            beginning = file.read(8)
        # A broken file with an image's suffix is taken: the audit lists it as unreadable.
        return None if beginning.startswith(_SIGNATURES) or path.suffix.lower() in _SUFFIXES else NO_IMAGE
    except OSError:
        return DANGLING if path.is_symlink() and not path.exists() else UNREADABLE


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or of the operating system, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES
