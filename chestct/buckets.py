"""Object stores: buckets and local folders. The only module that knows the library for them, obstore.

Addresses and keys come from the environment, such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID.
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import LocalStore, ObjectStore, from_url

from chestct.file_errors import CannotGoOn, FileError

SCHEMES: Final = ("s3://", "gs://", "az://")
_NO_KEYS: Final = (
    "no keys are set, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
)
_MEANINGS: Final = {
    "/latest/api/token": _NO_KEYS,
    "/computeMetadata/": _NO_KEYS,
    "/metadata/identity/": _NO_KEYS,
    "Missing AccessKeyId": _NO_KEYS,
    "Missing SecretAccessKey": _NO_KEYS,
    "Account must be specified": _NO_KEYS,
    "404 Not Found": "there is no such bucket",
    "403 Forbidden": "the keys are refused, or lack the right to do this",
}
"""What an error means that has this in its text. Without keys, obstore asks the cloud's own address for some."""
_OBSTORES_WORDS: Final = re.compile(r"^Generic (LocalFileSystem error: .*: (?=[^:]+ \(os error \d+\)$)|\w+ error: )")
"""Its name of the store, and for a folder also the path, which the caller's message has."""


class Object(NamedTuple):
    name: str
    size: int
    version: str
    """Changes with the content."""


class Store:
    """The objects below a bucket's prefix or a local folder. Raises CannotGoOn if the store fails."""

    def __init__(self, place: str, *, make: bool = False, retry_for: timedelta | None = None) -> None:
        """`place` is a URL of SCHEMES or a local folder, which `make` creates if it is not there.

        `retry_for` is the time in which a request to a bucket is tried again if it fails, three minutes by default.
        """
        self.place: Final = place
        if not make and not is_url(place) and not Path(place).is_dir():
            raise CannotGoOn(f"{place}: no such folder")
        try:
            if is_url(place):
                self._store: ObjectStore = from_url(
                    place, retry_config={"retry_timeout": retry_for} if retry_for else None
                )
            else:
                self._store = LocalStore(Path(place), mkdir=make)
        except (BaseError, OSError, ValueError) as error:
            raise CannotGoOn(f"{place}: {first_line(error)}") from error

    def names(self, prefix: str = "", *, after: str = "") -> Iterator[Object]:
        """The objects whose names begin with `prefix`, a folder, and sort after `after`."""
        try:
            for chunk in obstore.list(self._store, prefix or None, offset=after or None, chunk_size=1000):
                for found in chunk:
                    version = found["e_tag"] or found["last_modified"].isoformat()
                    yield Object(found["path"], found["size"], version)
        except (BaseError, OSError) as error:
            raise CannotGoOn(f"can't list {self.place}: {first_line(error)}") from error

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none of that name."""
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise CannotGoOn(f"can't read {self.place}/{name}: {first_line(error)}") from error

    def has(self, name: str) -> bool:
        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise CannotGoOn(f"can't read {self.place}/{name}: {first_line(error)}") from error
        return True

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object whole, unless there is one of that name. Returns whether it was stored.

        A local file is written by another name first and then linked. A bucket does it with a conditional request.
        """
        return self._put(name, content, replace=False)

    def put(self, name: str, content: bytes) -> None:
        """Store an object whole, in place of one of that name."""
        self._put(name, content, replace=True)

    def read(self, file: Object, most: int) -> bytes:
        """The bytes of an object as it was listed.

        Raises FileError if it is missing, forbidden, of more than `most` bytes, or of another version. An empty version
        allows any. Other errors are the store's, not the file's.
        """
        try:
            result = obstore.get(self._store, file.name)
            found = result.meta
            if file.version and (found["e_tag"] or found["last_modified"].isoformat()) != file.version:
                raise changed()
            if found["size"] > most:
                raise too_large(most)
            return bytes(result.bytes())
        except FileNotFoundError:
            raise missing() from None
        except PermissionDeniedError:
            raise FileError("file_unreadable", "the file may not be read") from None
        except (BaseError, OSError) as error:
            raise CannotGoOn(f"can't read {self.place}: {first_line(error)}") from error

    def _put(self, name: str, content: bytes, *, replace: bool) -> bool:
        try:
            obstore.put(self._store, name, content, mode="overwrite" if replace else "create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise CannotGoOn(f"can't write {self.place}/{name}: {first_line(error)}") from error
        return True


def is_url(place: str) -> bool:
    return place.startswith(SCHEMES)


def first_line(error: Exception) -> str:
    """The error in one line. obstore's have a second part for developers."""
    line = _OBSTORES_WORDS.sub("", str(error).partition("\n")[0]).strip() or type(error).__name__
    return next((meaning for sign, meaning in _MEANINGS.items() if sign in line), line)


def missing() -> FileError:
    return FileError("file_missing", "the file is not there")


def changed() -> FileError:
    return FileError("file_changed", "the file was changed after it was planned")


def too_large(most: int) -> FileError:
    return FileError("file_too_large", f"expected at most {most} bytes")
