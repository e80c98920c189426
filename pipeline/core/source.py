"""Which code a stage runs, and whether it computes anything else than before.

Comments, docstrings and layout compute nothing. Neither does pipeline/core/, which reads parameters and keeps records,
nor what only pipeline/core/ imports, such as the model card.
"""

import ast
import hashlib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("chestct", "pipeline")
KEEPS_RECORDS: Final = "pipeline/core/"


def modules_of(stage: str, leave: str | None = None) -> list[str]:
    """Return the paths of all modules of the project that `python -m pipeline.STAGE` imports, sorted, with its own.

    Modules whose path begins with `leave` are left out, with what only they import.
    """
    found, waiting = set[str](), [f"pipeline/{stage}.py"]
    while waiting:
        path = waiting.pop()
        if path not in found and not (leave and path.startswith(leave)):
            found.add(path)
            waiting += _imported(path)
    return sorted(found)


def describe(stage: str) -> str:
    """Return a line `path digest` for each module of the stage that computes something."""
    computing = modules_of(stage, leave=KEEPS_RECORDS)
    return "".join(f"{path} {digest_of((ROOT / path).read_text(encoding='utf-8'))}\n" for path in computing)


def digest_of(code: str) -> str:
    """Return the SHA-256 of a module's code without comments, docstrings and layout."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_docstring(each)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(path: str) -> list[str]:
    """The project's modules that the module at `path` imports, anywhere in it."""
    names = set[str]()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {f"{name.replace('.', '/')}.py" for name in names if name.split(".")[0] in PACKAGES}
    return [file for file in files if (ROOT / file).is_file()]
