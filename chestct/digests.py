"""SHA-256 of a model's files, so that what is served is what was made.

SHA256SUMS stands beside the files that it names, in the form that `sha256sum -c SHA256SUMS` checks.
"""

import hashlib
from pathlib import Path
from typing import Final

SUMS: Final = "SHA256SUMS"


class Altered(ValueError):
    """A file is not the one that was made; the message is one line and names both digests."""


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str) -> str:
    """The file's SHA-256, once it begins with `expected`. Raises Altered, and OSError where it can't be read."""
    found = sha256_of(path)
    if not expected or not found.startswith(expected):
        raise Altered(f"{path} was changed after it was made: SHA-256 expected {expected or 'none'}, found {found}")
    return found


def write_sums(folder: Path, *names: str) -> None:
    """Write SHA256SUMS of these files of `folder`, in one step."""
    lines = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    partial = folder / f"{SUMS}.partial"
    partial.write_text(lines, encoding="utf-8")
    partial.replace(folder / SUMS)


def check_sums(folder: Path, *names: str) -> None:
    """Hold these files of `folder` to its SHA256SUMS. Raises Altered, and OSError where one can't be read."""
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines]
    expected = {name.removeprefix("*"): digest.lower() for digest, name in (pair for pair in pairs if len(pair) == 2)}
    for name in names:
        check(folder / name, expected.get(name, ""))
