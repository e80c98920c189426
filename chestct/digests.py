"""Checks the SHA-256 of a model's files, so that the service uses the files that the pipeline wrote.

SHA256SUMS is beside the files that it lists. `sha256sum -c SHA256SUMS` can check it, too.
"""

import hashlib
from pathlib import Path
from typing import Final

SUMS: Final = "SHA256SUMS"


class Altered(ValueError):
    """A file differs from the original. The message is one line with both digests."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str) -> str:
    """SHA-256 of a file. Raises Altered if it does not begin with `expected`, and OSError."""
    found = sha256_of(path)
    if not expected or not found.startswith(expected):
        raise Altered(f"{path} was changed after it was made: SHA-256 expected {expected or 'none'}, found {found}")
    return found


def write_sums(folder: Path, *names: str) -> None:
    """Write SHA256SUMS for these files of `folder`, atomically."""
    lines = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    partial = folder / f"{SUMS}.partial"
    partial.write_text(lines, encoding="utf-8")
    partial.replace(folder / SUMS)


def check_sums(folder: Path, *names: str) -> None:
    """Check these files of `folder` by its SHA256SUMS. Raises Altered, and OSError if a file can't be read."""
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines]
    expected = {name.removeprefix("*"): digest.lower() for digest, name in (pair for pair in pairs if len(pair) == 2)}
    for name in names:
        check(folder / name, expected.get(name, ""))
