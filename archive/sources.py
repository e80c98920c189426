"""The files of an archive: a folder tree, a zip, a listing, or a bucket."""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from archive.zips import Zip
from chestct.buckets import Object, Store, changed, first_line, is_url, missing, too_large
from chestct.file_errors import CannotGoOn, FileError

MOST_BYTES: Final = 20 * 1024 * 1024
"""Most bytes of a file, by default those of a request to the service."""


class Source(Protocol):
    """Where the files are. `read` may be called from several threads."""

    root: str

    @property
    def kind(self) -> str: ...

    def files(self) -> Iterator[Object]:
        """Every file once, in an order that only its name and place determine. Raises CannotGoOn."""

    def read(self, file: Object) -> bytes:
        """The bytes of a file. Raises FileError, and CannotGoOn if the whole source fails."""


def find_source(place: str) -> Source:
    """The source at this place: a URL is a bucket, a file is a zip or a listing. Raises CannotGoOn."""
    if is_url(place):
        return Bucket(place)
    path = Path(place).absolute()
    if path.is_dir():
        return Folder(str(path))
    if not path.is_file():
        raise CannotGoOn(f"{place}: no such folder, zip or listing")
    try:
        zipped = zipfile.is_zipfile(path)
    except OSError as error:
        raise CannotGoOn(f"{place}: {error.strerror}") from error
    return Zip(str(path), MOST_BYTES) if zipped else Listing(str(path))


def open_source(kind: str, root: str) -> Source:
    """The source that a plan names."""
    match kind:
        case "zip":
            return Zip(root, MOST_BYTES)
        case "listing":
            return Listing(root)
        case "bucket":
            return Bucket(root)
        case _:
            return Folder(root)


class Folder:
    """Every file below a folder. Linked files count, linked folders do not."""

    kind: Final = "folder"

    def __init__(self, root: str) -> None:
        self.root = root

    def files(self) -> Iterator[Object]:
        yield from self._walk(self.root)

    def read(self, file: Object) -> bytes:
        return read_local(os.path.join(self.root, file.name), file)  # noqa: PTH118 - a third of the cost of Path

    def _walk(self, folder: str) -> Iterator[Object]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise CannotGoOn(f"{folder}: {error.strerror}; each of its files needs a row") from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path)
            elif entry.is_file() or (entry.is_symlink() and not entry.is_dir()):  # a linked folder may be a circle
                yield _look(entry.path, os.path.relpath(entry.path, self.root))


class Listing:
    """The files that a text file names, one a line: paths, also relative to the listing's folder, and URLs."""

    kind: Final = "listing"

    def __init__(self, root: str) -> None:
        self.root = root
        self._folder = str(Path(root).parent)
        self._stores: dict[str, Store] = {}

    def files(self) -> Iterator[Object]:
        seen = set[str]()
        try:
            with open(self.root, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
                for line in lines:
                    name = line.rstrip("\r\n")
                    if not name:
                        continue
                    if name in seen:
                        raise CannotGoOn(f"{self.root}: it names {name!r} twice")
                    if "\0" in name:
                        raise CannotGoOn(f"{self.root}: it is no text, and no zip either")
                    seen.add(name)
                    yield Object(name, -1, "") if is_url(name) else _look(self._path(name), name)
        except OSError as error:
            raise CannotGoOn(f"{self.root}: {error.strerror}") from error

    def read(self, file: Object) -> bytes:
        if not is_url(file.name):
            return read_local(self._path(file.name), file)
        scheme, _, rest = file.name.partition("://")
        bucket, _, name = rest.partition("/")
        place = f"{scheme}://{bucket}"
        if place not in self._stores:
            self._stores[place] = Store(place)
        return self._stores[place].read(file._replace(name=name), MOST_BYTES)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)  # noqa: PTH118


class Bucket:
    """Every object below a bucket's prefix."""

    kind: Final = "bucket"

    def __init__(self, root: str) -> None:
        self.root = root
        self._store = Store(root)

    def files(self) -> Iterator[Object]:
        for found in self._store.names():
            if not found.name.endswith("/"):
                yield found

    def read(self, file: Object) -> bytes:
        return self._store.read(file, MOST_BYTES)


def read_local(path: str, file: Object) -> bytes:
    """The bytes of a local file. Raises FileError, also if it is not the file that was planned."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as opened:
            before = os.fstat(opened.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise FileError("file_unreadable", "it is no regular file")
            data = opened.read(MOST_BYTES + 1)
            after = os.fstat(opened.fileno())
    except (FileNotFoundError, NotADirectoryError):
        raise missing() from None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else first_line(error)
        raise FileError("file_unreadable", f"the file can't be read: {words}") from None
    if len(data) > MOST_BYTES:
        raise too_large(MOST_BYTES)
    if file.version and (_version(before) != file.version or _version(after) != file.version):
        raise changed()
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe without a writer would block for ever


def _look(path: str, name: str) -> Object:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return Object(name, -1, "")
    return Object(name, found.st_size, _version(found))


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"
