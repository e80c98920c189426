"""The files in a zip, which are read from it and never unpacked to a disk."""

import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from chestct.buckets import Object, changed, missing, too_large
from chestct.file_errors import CannotGoOn, FileError

_LARGEST: Final = (1 << 63) - 1
"""Largest size that a table holds. A zip may claim any of 64 bits."""


class Zip:
    """Every file in a zip."""

    kind: Final = "zip"

    def __init__(self, root: str, most_bytes: int) -> None:
        self.root = root
        self._most_bytes = most_bytes
        self._local = threading.local()

    def files(self) -> Iterator[Object]:
        """The files in the zip's order.

        Raises CannotGoOn if a path leads out of the zip or names no file, or if a name is there twice.
        """
        seen = set[str]()
        for info in self._open().infolist():
            if info.filename.endswith("/"):  # a folder; is_dir fails for an empty name
                continue
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if not name.parts:
                raise CannotGoOn(f"{self.root}: refused, its path {info.filename!r} names no file")
            if name.is_absolute() or ".." in name.parts or name.parts[0].endswith(":"):
                raise CannotGoOn(f"{self.root}: refused, its path {info.filename!r} leads out of the zip")
            if info.filename in seen:
                raise CannotGoOn(f"{self.root}: refused, it has {info.filename!r} twice")
            seen.add(info.filename)
            yield Object(info.filename, min(info.file_size, _LARGEST), _version(info))

    def read(self, file: Object) -> bytes:
        """The bytes of a file. A bomb costs as much as the largest file that is allowed, whatever its header says."""
        try:
            info = self._open().getinfo(file.name)
            if file.version and _version(info) != file.version:
                raise changed()
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FileError("file_unreadable", "the zip's file is neither stored nor deflated")
            with self._open().open(info) as opened:
                data = opened.read(self._most_bytes + 1)
        except KeyError:
            raise missing() from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            # a wrong checksum, a cut, or a password
            raise FileError("file_unreadable", f"the zip's file can't be read: {_words(error)}") from None
        if len(data) > self._most_bytes:
            raise too_large(self._most_bytes)
        return data

    def _open(self) -> zipfile.ZipFile:
        """The zip, opened by each thread for itself."""
        if not hasattr(self._local, "zip"):
            try:
                self._local.zip = zipfile.ZipFile(self.root)
            except (OSError, zipfile.BadZipFile, RuntimeError, ValueError) as error:  # RuntimeError: a newer version
                raise CannotGoOn(f"{self.root}: {_words(error)}") from error
        opened: zipfile.ZipFile = self._local.zip
        return opened


def _words(error: Exception) -> str:
    if isinstance(error, RuntimeError) and "encrypted" in str(error):
        return "it needs a password"
    return str(error).partition("\n")[0] or type(error).__name__


def _version(info: zipfile.ZipInfo) -> str:
    return f"{info.file_size}-{info.CRC:08x}"
