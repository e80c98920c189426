"""Python runs this at its start where this folder is in PYTHONPATH.

At the end of `python -m pipeline.<stage>` it writes the project's modules that were loaded, as paths relative to the
current directory, one a line, to <stage>.txt in the folder that RECORD_MODULES names.
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
