"""Prints the experiments of `dvc exp show` as a table that fits 120 columns: `make experiments`.

DVC's own table has a column for each parameter and each file. Here a line below each experiment names the parameters
that differ from those of the commit that it was started from.
"""

import csv
import io
import subprocess
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import yaml

from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params

WIDTH: Final = 120
FIGURES: Final = {
    "cancer_auc": "cancer AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "calibration",
    "accepted": "accepted",
    "style_kept": "style kept",
    "style_wrong": "style wrong",
}
"""The key figures (pipeline.core.paths.KEY_FIGURES), with the heads of their columns."""
_NAME: Final = 20
_BASELINE: Final = "baseline"

Row = Mapping[str, str]


def experiments(_: Params) -> None:
    """Print the table. Raises StageError if DVC can't list the experiments."""
    command = ["dvc", "exp", "show", "--csv", "--precision", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()), "DVC gave no reason")
        raise StageError(f"`{' '.join(command)}` failed: {reason}")
    keys = list(_flat(yaml.safe_load(paths.PARAMS.read_text(encoding="utf-8"))))
    print("\n".join(table(list(csv.DictReader(io.StringIO(done.stdout))), keys)))


def table(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Return the lines of the table. `rows` are those of `dvc exp show --csv`, and `keys` the parameters."""
    heads = "".join(f"  {head:>{len(head)}}" for head in FIGURES.values())
    lines = [f"{'experiment':<{_NAME}}  {'created':<16}{heads}"]
    baseline: Row = {}
    for row in rows:
        if row["typ"] == _BASELINE:
            baseline = row
        name = textwrap.shorten(row["Experiment"] or row["rev"], _NAME, placeholder="...")
        figures = "".join(f"  {row.get(key) or '-':>{len(head)}}" for key, head in FIGURES.items())
        lines.append(f"{name:<{_NAME}}  {_date(row['Created']):<16}{figures}")
        changed = [f"{key}={row[key]}" for key in keys if key in row and row[key] != baseline.get(key, row[key])]
        lines += textwrap.wrap(" ".join(changed), WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def _date(created: str) -> str:
    return f"{datetime.fromisoformat(created):%Y-%m-%d %H:%M}" if created else "-"


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The name of each parameter, such as `train.augment.flip`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def main() -> None:
    runner.run(experiments)


if __name__ == "__main__":
    main()
