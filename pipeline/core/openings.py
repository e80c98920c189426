"""Records each time that a measuring set is opened. A set that is often opened to choose a model no longer tests it."""

import json
from datetime import UTC, datetime
from pathlib import Path


def record(path: Path, **facts: object) -> int:
    """Add a line of JSON with the date and `facts` to the file. Returns how many lines it had before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    line = {"opened": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return before
