"""What all documents of the project have in common: the model card, params.yaml, plans and reports."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of the documents: immutable, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JsonFile(Frozen):
    """A document that is a JSON file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a document. Raises OSError and pydantic's ValidationError."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
