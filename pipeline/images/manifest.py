"""data/manifest.json: every image file of a data set with its digest. It identifies the data a model learned from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Self

from chestct.document import Frozen
from pipeline.core import paths
from pipeline.core.errors import DataError

Source = Literal["kaggle", "local", "synthetic"]
SPLITS: Final = ("train", "valid", "test")


class ImageFile(Frozen):
    path: str
    """split/class folder/name, below data/raw."""
    sha256: str
    bytes: int

    @property
    def split(self) -> str:
        return PurePosixPath(self.path).parts[0]

    @property
    def folder(self) -> str:
        """The class folder, as this split spells it."""
        return PurePosixPath(self.path).parts[1]


class Manifest(Frozen):
    digest: str
    """SHA-256 over the sorted lines `path sha256` of all files. It does not depend on where the files are."""
    files: tuple[ImageFile, ...]
    """Sorted by path."""

    @classmethod
    def of(cls, images: Mapping[str, Path]) -> Self:
        """Read and hash the files in `images`, which maps paths below data/raw to files."""
        files = tuple(_describe(name, images[name]) for name in sorted(images))
        lines = "".join(f"{file.path} {file.sha256}\n" for file in files)
        return cls(digest=hashlib.sha256(lines.encode()).hexdigest(), files=files)

    @classmethod
    def read(cls, path: Path = paths.MANIFEST) -> Self:
        """Read a manifest. Raises DataError if it is missing or broken."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"no {path}; `dvc repro` runs ingest, which writes it") from None
        try:
            return cls.model_validate_json(content)
        except ValueError:
            raise DataError(f"{path} is no manifest; remove it, and `dvc repro` writes it again") from None

    def write(self, path: Path = paths.MANIFEST) -> None:
        """Write atomically: a reader gets the old manifest or the new one."""
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def _describe(name: str, path: Path) -> ImageFile:
    content = path.read_bytes()
    return ImageFile(path=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
