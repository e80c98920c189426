"""Keeps what a long command has measured so far, so that it continues there after an interruption."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def keep(file: Path, about: Mapping[str, Any], result: Any) -> None:
    """Write a result in JSON, whole or not at all. `about` says what was measured, such as a commit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"about": about, "result": result}), encoding="utf-8")
    unfinished.replace(file)


def kept(file: Path, about: Mapping[str, Any]) -> Any:
    """Return the result in the file, with tuples as lists; None if there is none, or if it is about something else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found["result"] if found.get("about") == about else None
