"""Records which modules a stage loads. Python runs this file at its start if PYTHONPATH contains this folder.

At the end of `python -m pipeline.STAGE` it writes the paths of the project's loaded modules to STAGE.txt in the folder
RECORD_MODULES, one per line, relative to the current directory.
"""

import atexit
import os
import sys
from pathlib import Path


def record() -> None:
    package, _, stage = getattr(sys.modules["__main__"].__spec__, "name", "").partition(".")
    if package != "pipeline":
        return
    root = Path.cwd()
    files = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    loaded = sorted(
        file.relative_to(root).as_posix()
        for file in files
        if file.is_relative_to(root) and file.relative_to(root).parts[0] in {"chestct", "pipeline", "serving"}
    )
    (Path(os.environ["RECORD_MODULES"]) / f"{stage}.txt").write_text("\n".join(loaded), encoding="utf-8")


atexit.register(record)
