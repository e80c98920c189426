"""The plan: which files an archive has and which model scores them, written once before the work starts."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from archive.models import Model
from archive.rows import readable
from archive.sources import Source
from chestct import tables
from chestct.buckets import Object, Store, is_url
from chestct.card import DISCLAIMER
from chestct.document import Frozen
from chestct.file_errors import CannotGoOn

PLAN: Final = "plan.json"
PARTS: Final = "parts"

MOST_ROWS: Final = 500
"""Most rows of a part: some seconds of work, which a killed process loses."""
_FEWEST_ROWS: Final = 16
_PARTS_WANTED: Final = 64
"""Parts of a small archive, so that each process gets about as much work."""

_MANIFEST: Final = tables.schema({"name": tables.BYTES, "size": tables.COUNT, "version": tables.TEXT})
_AT_A_TIME: Final = 10_000


class Plan(Frozen):
    """The content of PLAN. If two commands plan at once, the plan is that of the first to write it."""

    format: Literal[1] = 1
    kind: Literal["folder", "zip", "listing", "bucket"]
    root: str
    """The folder, the file or the bucket's URL."""
    files: Annotated[int, Field(ge=1)]
    part_rows: Annotated[int, Field(ge=1)]
    by_series: bool
    model: str
    model_sha256: str
    manifest: str
    """Name of the Parquet file with the files: name, size, version."""
    manifest_sha256: str
    disclaimer: str = DISCLAIMER

    @property
    def parts(self) -> int:
        """Number of parts. Part N has the rows of the files N * part_rows to (N + 1) * part_rows - 1."""
        return math.ceil(self.files / self.part_rows)


class Part(NamedTuple):
    number: int
    files: list[Object]

    @property
    def name(self) -> str:
        """Name of the Parquet file with its rows."""
        return part_name(self.number)


def part_name(number: int) -> str:
    return f"{PARTS}/part-{number:06}.parquet"


def make(source: Source, out: Store, model: Model, *, by_series: bool = False, part_rows: int | None = None) -> Plan:
    """Write the manifest and the plan, unless the same plan is there already.

    Raises CannotGoOn if there are no files, if the files can't be listed, or if there is another plan. The message
    then says what differs.
    """
    count, manifest = _list(source.files())
    if not count:
        raise CannotGoOn(f"{source.root}: there are no files")
    digest = hashlib.sha256(manifest).hexdigest()
    plan = Plan.model_validate(
        {
            "kind": source.kind,
            "root": source.root,
            "files": count,
            "part_rows": part_rows or max(_FEWEST_ROWS, min(MOST_ROWS, math.ceil(count / _PARTS_WANTED))),
            "by_series": by_series,
            "model": model.tag,
            "model_sha256": model.card.lineage.model_sha256,
            "manifest": f"manifest-{digest[:16]}.parquet",
            "manifest_sha256": digest,
        }
    )
    if out.get(PLAN) is None:
        out.put_if_absent(plan.manifest, manifest)
        out.put_if_absent(PLAN, f"{plan.model_dump_json(indent=1)}\n".encode())
    found = load(out)
    if found != plan:
        raise CannotGoOn(f"{out.place} has another plan: {_difference(found, plan, out, manifest)}")
    return found


def find(place: str) -> Plan:
    """The plan at a bucket's prefix or in a folder. Raises CannotGoOn."""
    if not is_url(place) and not Path(place).is_dir():
        raise CannotGoOn(f"{place}: no such folder; `chestct score plan IN {place}` makes it")
    return load(Store(place))


def load(out: Store) -> Plan:
    """The plan that is there. Raises CannotGoOn."""
    content = out.get(PLAN)
    if content is None:
        raise CannotGoOn(f"{out.place} has no plan; `chestct score plan IN {out.place}` makes it")
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise CannotGoOn(f"{out.place}/{PLAN} was changed or is of another version") from error


def parts(plan: Plan, out: Store) -> Iterator[Part]:
    """The parts in order, each with its files. Raises CannotGoOn if the manifest is not the planned one."""
    content = out.get(plan.manifest)
    if content is None or hashlib.sha256(content).hexdigest() != plan.manifest_sha256:
        raise CannotGoOn(f"{out.place}/{plan.manifest} is missing or was changed; plan again in another folder")
    for number, rows in enumerate(tables.read(content, plan.part_rows)):
        yield Part(number, [_to_object(row) for row in rows])


def check_apart(source: Source, place: str) -> None:
    """Raise CannotGoOn if the table would lie among the files."""
    apart = source.kind != "folder" or is_url(place)
    if not apart and Path(place).resolve().is_relative_to(Path(source.root).resolve()):
        raise CannotGoOn(f"{place} lies in {source.root}, so its own files would be scored; choose another place")


def _list(files: Iterable[Object]) -> tuple[int, bytes]:
    """The number of the files, and the manifest: a Parquet file, which takes about 20 bytes for each."""
    count = 0
    manifest = BytesIO()

    def batches() -> Iterator[tables.RecordBatch]:
        nonlocal count
        rows = ({"name": os.fsencode(file.name), "size": file.size, "version": file.version} for file in files)
        while some := list(islice(rows, _AT_A_TIME)):
            count += len(some)
            yield tables.to_batch(some, _MANIFEST)

    tables.write(batches(), _MANIFEST, manifest)
    return count, manifest.getvalue()


def _to_object(row: tables.Row) -> Object:
    return Object(os.fsdecode(row["name"]), row["size"], row["version"])


def _difference(found: Plan, wanted: Plan, out: Store, manifest: bytes) -> str:
    """What differs between the plan that was found and the wanted one, in words."""
    if found.manifest_sha256 == wanted.manifest_sha256 or (found.kind, found.root) != (wanted.kind, wanted.root):
        names = ("model", "root", "kind", "by_series", "part_rows")
        pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in names)
        return ", ".join(f"{name} is {old}, not {new}" for name, old, new in pairs if old != new)
    old = (file for part in parts(found, out) for file in part.files)
    new = (_to_object(row) for rows in tables.read(manifest, _AT_A_TIME) for row in rows)
    planned, now = next(pair for pair in zip_longest(old, new) if pair[0] != pair[1])
    if planned and now and planned.name == now.name:
        first = f"{readable(now.name)} was changed"
    elif planned and (now is None or planned.name < now.name):
        first = f"{readable(planned.name)} is gone"
    else:
        first = f"{readable(now.name)} is new" if now else "the order"
    return (
        f"it is for {found.files} files, now there are {wanted.files}; the first that differs: {first}. "
        f"`chestct score run {out.place}` goes on with the planned ones"
    )
