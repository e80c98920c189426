"""Revisions of a series in the spool: which slices it had when it was complete, and what became of them.

A revision's folder holds slices.json, result.json, the objects to return, and returned.json. Each file is written
whole, in this order, so a restart goes on where the last process stopped.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

from dicom_node import metrics
from dicom_node.score import Result
from dicom_node.slices import Choice, choose, describe
from dicom_node.spool import Spool

OBJECTS: Final = ("sr.dcm", "sc.dcm")
_SLICES, _RESULT, _RETURNED = "slices.json", "result.json", "returned.json"


class Revision(BaseModel):
    """A complete series. Its slices do not change; late ones make the next revision."""

    model_config = ConfigDict(frozen=True)

    number: int
    """1 for the first."""
    names: tuple[str, ...]
    """All slices of the series, by their names in the spool."""
    choice: Choice
    closed: datetime


class RevisionFolder:
    """The folder of one revision of one series."""

    def __init__(self, spool: Spool, key: str, number: int) -> None:
        self._spool = spool
        self.key = key
        self.number = number
        self._folder = spool.folder(key) / f"revision-{number}"

    @classmethod
    def newest(cls, spool: Spool, key: str) -> Self | None:
        """The newest revision of a series; None if it has none yet."""
        files = spool.folder(key).glob(f"revision-*/{_SLICES}")
        numbers = [int(path.parent.name.partition("-")[2]) for path in files]
        return cls(spool, key, max(numbers)) if numbers else None

    @classmethod
    def close(cls, spool: Spool, key: str, most: int) -> Self | None:
        """Make a revision of the slices that a series has now. Returns None if the newest revision has them all."""
        last = cls.newest(spool, key)
        names = spool.slices(key)
        if last is not None and list(last.read().names) == names:
            return None
        made = cls(spool, key, 1 if last is None else last.number + 1)
        choice = choose([describe(spool.slice_path(key, name)) for name in names], most)
        revision = Revision(number=made.number, names=tuple(names), choice=choice, closed=datetime.now(UTC))
        made._write(_SLICES, revision)
        metrics.COMPLETE.inc()
        return made

    def read(self) -> Revision:
        return Revision.model_validate_json((self._folder / _SLICES).read_bytes())

    def result(self) -> Result | None:
        """The scores; None if the slices are not scored yet."""
        path = self._folder / _RESULT
        return Result.model_validate_json(path.read_bytes()) if path.exists() else None

    def write_result(self, result: Result) -> None:
        self._write(_RESULT, result)

    def slice_path(self, name: str) -> Path:
        return self._spool.slice_path(self.key, name)

    def objects(self) -> list[Path]:
        """The objects to return; empty if they are not made yet."""
        paths = [self._folder / name for name in OBJECTS]
        return [path for path in paths if path.exists()] if paths[0].exists() else []

    def write_objects(self, files: dict[str, bytes]) -> None:
        """Write all objects or none: the report comes last, and without it `objects` is empty."""
        for name in reversed(OBJECTS):
            if name in files:
                self._spool.write(self._folder / name, files[name])

    def report_before(self) -> Path | None:
        """The report of the revision before this one; None if there is none."""
        path = self._spool.folder(self.key) / f"revision-{self.number - 1}" / OBJECTS[0]
        return path if path.exists() else None

    def returned_at(self) -> float | None:
        """When the PACS had taken all objects, in seconds since 1970; None if it has not."""
        path = self._folder / _RETURNED
        return path.stat().st_mtime if path.exists() else None

    def mark_returned(self) -> None:
        self._spool.write(self._folder / _RETURNED, b"{}\n")

    def _write(self, name: str, content: BaseModel) -> None:
        self._spool.write(self._folder / name, content.model_dump_json().encode())
