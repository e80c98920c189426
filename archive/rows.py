"""The rows of the table: their columns, and what every row has."""

import os
from typing import Final

from archive.models import Model
from chestct import answer_columns, tables
from chestct.card import DISCLAIMER
from chestct.tables import NUMBER, TEXT, Row, Schema

_BEFORE: Final = {"file": TEXT, "sha256": TEXT, "error": TEXT, "message": TEXT}
_AFTER: Final = {"series": TEXT, "model": TEXT, "model_sha256": TEXT, "seconds": NUMBER, "disclaimer": TEXT}
"""The columns before and after those of the answer."""


def schema(classes: tuple[str, ...]) -> Schema:
    """The table's schema for a model of these classes."""
    columns = {**_BEFORE, **answer_columns.columns(classes), **_AFTER}
    return tables.schema(columns, {"disclaimer": DISCLAIMER})


def of_file(model: Model, file: str) -> Row:
    """The columns that every row has."""
    return {
        "file": readable(file),
        "model": model.tag,
        "model_sha256": model.card.lineage.model_sha256,
        "disclaimer": model.card.disclaimer,
    }


def readable(name: str) -> str:
    r"""A file's name as text. Bytes that are no UTF-8 become \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
