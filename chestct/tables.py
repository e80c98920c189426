"""Arrow tables and Parquet files. The only module that knows the library for them, arro3."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from arro3.core import Array, Field, RecordBatchReader
from arro3.core import DataType as DataType
from arro3.core import RecordBatch as RecordBatch
from arro3.core import Schema as Schema
from arro3.io import read_parquet, write_parquet

TEXT: Final = DataType.utf8()
BYTES: Final = DataType.binary()
NUMBER: Final = DataType.float64()
COUNT: Final = DataType.int64()
TIME: Final = DataType.timestamp("us", tz="UTC")
"""In rows, whole microseconds since 1970."""

_MAGIC: Final = b"PAR1"
"""The first and the last bytes of a Parquet file."""
_COMPRESSION: Final = "zstd(3)"

Row = dict[str, Any]
T = TypeVar("T")


class Unreadable(ValueError):
    """The bytes are no Parquet file."""


def schema(columns: Mapping[str, DataType], metadata: Mapping[str, str] | None = None) -> Schema:
    """The schema of these columns, all of which may hold nulls."""
    return Schema([Field(name, kind, nullable=True) for name, kind in columns.items()], metadata=dict(metadata or {}))


def to_batch(rows: Sequence[Row], schema: Schema) -> RecordBatch:
    """A record batch of rows. A column that a row lacks is null."""
    fields = (schema.field(name) for name in schema.names)
    arrays = [_array([row.get(field.name) for row in rows], field.type) for field in fields]
    return RecordBatch.from_arrays(arrays, schema=schema)


def to_rows(batch: Any) -> list[Row]:
    """The rows of a record batch of any Arrow library."""
    own = RecordBatch.from_arrow(batch)
    columns = [own.column(name).to_pylist() for name in own.column_names]
    return [dict(zip(own.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def write(batches: Iterable[RecordBatch], schema: Schema, file: Path | IO[bytes]) -> None:
    """Write batches to a Parquet file one by one."""
    write_parquet(RecordBatchReader.from_batches(schema, batches), file, compression=_COMPRESSION)


def to_parquet(batch: RecordBatch) -> bytes:
    buffer = BytesIO()
    write([batch], batch.schema, buffer)
    return buffer.getvalue()


def read(file: Path | bytes, batch_size: int) -> Iterator[list[Row]]:
    """Rows of a Parquet file, up to `batch_size` at a time. Raises Unreadable."""
    with file.open("rb") if isinstance(file, Path) else BytesIO(file) as whole:
        _check_ends(whole)
    opened = file if isinstance(file, Path) else BytesIO(file)
    batches = _try(lambda: read_parquet(opened, batch_size=batch_size))
    while (batch := _try(lambda: next(batches, None))) is not None:
        yield to_rows(batch)


def _check_ends(file: IO[bytes]) -> None:
    """Raises Unreadable for what is no whole Parquet file. arro3 would write its panic to stderr."""
    first, size = file.read(len(_MAGIC)), file.seek(0, 2)
    file.seek(max(size - len(_MAGIC), 0))
    if size < 3 * len(_MAGIC) or (first, file.read()) != (_MAGIC, _MAGIC):
        raise Unreadable("this is no Parquet file, or a part of one")


def _array(values: Sequence[Any], kind: DataType) -> Array:
    return Array(values, COUNT).cast(kind) if kind == TIME else Array(values, kind)


def _try(step: Callable[[], T]) -> T:
    try:
        return step()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - arro3 panics for a broken file, and a panic is no Exception
        raise Unreadable(str(error)) from None
