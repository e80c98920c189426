"""Compare two trainings image by image: python -m pipeline.compare A B

A and B are ids of MLflow runs, or the unambiguous beginnings of ids. Each image is judged by the network that was not
trained on its fold. The differences are those of B minus A, with 95 % intervals from resampling whole scans.
Published differences between trainings come from this command.

Exit code 2: there is no such run, or the two did not hold out the same images in the same folds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from chestct.card import Estimate
from pipeline.core import paths, runner, tracking
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.core.tracking import RunRecord
from pipeline.judging.comparison import Comparison, Figure, OutOfFoldAnswers, compare_answers
from pipeline.judging.plots import in_words

SHORT: Final = 8
"""Characters of an id in the table."""


def compare(params: Params, first: str, second: str) -> None:
    """Print the comparison of two runs, named by their ids or beginnings of these.

    Raises StageError if a run is not there, or if they differ in data, images, labels, folds or scans.
    """
    runs = tracking.find_run(first), tracking.find_run(second)
    one, other = (_read_answers(run.run_id) for run in runs)
    differing = [] if runs[0].tags["data_digest"] == runs[1].tags["data_digest"] else ["data digest"]
    differing += one.differences(other)
    names = " and ".join(run.run_id for run in runs)
    if differing:
        raise StageError(f"runs {names} can't be compared image by image: they differ in {', '.join(differing)}")
    found = compare_answers(one, other, resamples=params.evaluate.bootstrap, seed=params.seed)
    print("\n".join(_table(runs, found)))


def _read_answers(run_id: str) -> OutOfFoldAnswers:
    name = paths.OUT_OF_FOLD.name
    if name not in tracking.artifacts(run_id):
        raise StageError(f"run {run_id} has no {name}, so its answers are not known; train it again")
    with TemporaryDirectory() as folder:
        return OutOfFoldAnswers.read(tracking.fetch(run_id, name, Path(folder)))


def _table(runs: tuple[RunRecord, RunRecord], found: Comparison) -> Iterator[str]:
    """The comparison, line by line."""
    heads = (f"{side} {run.run_id[:SHORT]}" for side, run in zip("AB", runs, strict=True))
    yield _row("out of fold", *heads, "B - A, points")
    yield _row("accuracy", *_cells(found.accuracy))
    yield _row("macro F1", *_cells(found.macro_f1))
    yield _row("any cancer, ROC AUC", *_cells(found.cancer_auc))
    yield (
        f"of {found.images} images in {found.scans} scans, A alone gets {found.first_alone} right, B alone "
        f"{found.second_alone}, both {found.both_right}, neither {found.neither}"
    )
    yield f"same data ({runs[0].tags['data_digest'][:12]}), images, labels, folds and scans"
    yield from _changes(runs)


def _cells(figure: Figure) -> tuple[str, str, str]:
    return in_words(figure.first), in_words(figure.second), _points(figure.difference)


def _points(difference: Estimate) -> str:
    value, low, high = (round(100 * end, 1) + 0.0 for end in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _changes(runs: tuple[RunRecord, RunRecord]) -> Iterator[str]:
    """The parameters and the commits in which the runs differ."""
    one, other = ({**run.params, "commit": run.tags["git_commit"]} for run in runs)
    keys = sorted(
        key for key in one | other if one.get(key) != other.get(key) and ("." in key or key in ("seed", "commit"))
    )
    for key in keys:
        yield f"{key}: {one.get(key, 'none')} -> {other.get(key, 'none')}"


def _row(*cells: str) -> str:
    name, *rest = cells
    return f"{name:<20}" + "".join(f"{cell:>24}" for cell in rest)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", metavar="A", help="id of an MLflow run, or its beginning")
    parser.add_argument("second", metavar="B")
    arguments = parser.parse_args()
    runner.run(compare, arguments.first, arguments.second)


if __name__ == "__main__":
    main()
