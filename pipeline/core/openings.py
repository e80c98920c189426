"""Records each time that a measuring set is opened. A set that is often opened to choose a model no longer tests it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def record(path: Path, **facts: object) -> list[dict[str, Any]]:
    """Add a line of JSON with the date and `facts` to the file. Returns the lines that it had before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    line = {"opened": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return [json.loads(each) for each in before]
