"""The table of experiments."""

from pathlib import Path

import pytest

from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.experiments import FIGURES, experiments, table
from tests.server import ROOT

KEYS = ["train.epochs", "train.learning_rate"]


def row(name: str, typ: str, *, rev: str = "", created: str = "", auc: str = "", **params: str) -> dict[str, str]:
    figures = dict.fromkeys(FIGURES, "0.5" if auc else "")
    changed = {key.replace("__", "."): value for key, value in params.items()}
    usual = {"train.epochs": "22", "train.learning_rate": "0.0003"}
    where = {"Experiment": name, "rev": rev, "typ": typ, "Created": created, "data/raw": "c0ffee"}
    return {**where, **figures, "cancer_auc": auc, **usual, **changed}


def test_each_experiment_has_its_figures_and_what_was_changed() -> None:
    rows = [
        row("", "baseline", rev="workspace", auc="0.9"),
        row("main", "baseline", rev="abc1234", created="2026-11-29T12:00:00"),
        row(
            "tasty-gyro", "branch_commit", rev="def5678", created="2026-11-29T13:05:00", auc="0.95", train__epochs="30"
        ),
    ]
    head, workspace, main, tasty, changed = table(rows, KEYS)
    assert head.split()[:2] == ["experiment", "created"]
    assert workspace.split() == ["workspace", "-", "0.9", *["0.5"] * 6]
    assert main.split() == ["main", "2026-11-29", "12:00", *["-"] * 7]
    assert tasty.split() == ["tasty-gyro", "2026-11-29", "13:05", "0.95", *["0.5"] * 6]
    assert changed == "    train.epochs=30"
    assert tasty.index("0.95") + 4 == head.index("cancer AUC") + len("cancer AUC"), "figures stand below their heads"


def test_the_table_fits_120_columns() -> None:
    keys = [f"train.a_long_name_of_a_parameter_{number}" for number in range(20)]
    usual, changed = dict.fromkeys(keys, "1"), dict.fromkeys(keys, "0.000123456")
    rows = [
        row("main", "baseline", **{key.replace(".", "__"): value for key, value in usual.items()}),
        row("x" * 80, "branch_commit", auc="0.123", **{key.replace(".", "__"): each for key, each in changed.items()}),
    ]
    lines = table(rows, keys)
    assert max(map(len, lines)) <= 120
    assert all(any(key in line for line in lines) for key in keys)


def test_outside_of_a_project_of_dvc_it_says_so_in_one_line(workspace: Path) -> None:
    paths.PARAMS.write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(StageError, match=r"^`dvc exp show --csv --precision 3` failed: ") as caught:
        experiments(Params.read())
    assert "\n" not in str(caught.value)
