"""Store the best model in the BentoML store. The last line of output is the model's tag.

Of the finished runs on the current data whose graph has at most `store.max_megabytes`, the best one has the highest
out-of-fold ROC AUC of any cancer against normal. The kinds of cancer decide nothing: with four patients of one kind,
their figures are chance. Test figures never decide. The model must pass the gate, section `store` of params.yaml.
If the test folder was opened for this graph (`make report`), its figures are added to the card. Otherwise the card has
none, and a line says so.
The stored model becomes the champion of MLflow's registry. With --champion, the champion is stored as it is, wherever
it was trained and whatever the gate.
Exit code 2: there is no such run. Exit code 3: the best run is below the gate, and nothing is stored.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from chestct.card import ModelCard
from chestct.digests import SUMS, Altered, check, check_sums, write_sums
from chestct.store import CARD, GRAPH, import_model
from pipeline import documents
from pipeline.core import paths, runner, tracking, tracking_models
from pipeline.core.errors import StageError, TrackingError
from pipeline.core.params import Params, Store
from pipeline.images.manifest import Manifest
from pipeline.report import Reported

_NO_REPORT: Final = (
    "the test folder was not opened for its graph, so the card has no figure of it; to add them on purpose, run "
    "`make report` where this run was trained, then `make store`"
)


def store(params: Params, release: Path | None = None) -> None:
    """Import the best run's model into the BentoML store. Copy its graph, card and audit into the folder `release`.

    If that is the project's own folder, pipeline.documents also writes the released model's documents.

    Raises StageError if there is no run, the best one is below the gate, or its files do not belong together.
    """
    most = params.store.max_megabytes
    best = tracking.best_run(Manifest.read().digest, most)
    if best is None:
        raise StageError(
            f"MLflow has no finished run on these data with a graph of at most {most:g} MB; `dvc repro` makes one"
        )
    missed = below_gate(best.metrics, params.store)
    if missed:
        print("\n".join(missed), file=sys.stderr)
        raise StageError(f"the best run, {best.run_id}, is below the gate of params.yaml; nothing was stored", 3)

    with TemporaryDirectory() as folder:
        tag = _import(best.run_id, Path(folder))
        if release is not None:
            audit = tracking.fetch(best.run_id, paths.AUDIT.name, Path(folder))
            release.mkdir(parents=True, exist_ok=True)
            files = (audit, *(Path(folder, "release", name) for name in (CARD, GRAPH)))
            for file in files:
                shutil.copyfile(file, release / file.name)
            write_sums(release, *(file.name for file in files))
    if release is not None and release.resolve() == paths.RELEASED.resolve():
        documents.write()
    _crown(best.run_id, tag)
    print(f"run {best.run_id}: out-of-fold ROC AUC of any cancer against normal {best.metrics[tracking.SCORE]:.3f}")
    print(tag)


def store_champion(_: Params) -> None:
    """Import the model of the registry's champion. Raises StageError as `store` does, or if there is no champion."""
    with TemporaryDirectory() as folder:
        print(_import(tracking_models.champion(), Path(folder)))


def _import(run_id: str, folder: Path) -> str:
    """Fetch the run's model into `folder`, complete its card, and import it. Return its tag."""
    model = tracking.fetch(run_id, "release", folder)
    _finish_card(model, _fetch_report(run_id, folder))
    return import_model(model)


def _crown(run_id: str, tag: str) -> None:
    """Make the run's model the champion. If that is impossible, a line says so, because the model is stored anyway."""
    try:
        if tracking_models.crown(run_id, tag) is None:
            print(f"run {run_id} has no MLflow model, so the champion stays as it was", file=sys.stderr)
    except TrackingError as error:
        print(f"{error}; the model is stored, and the champion stays as it was", file=sys.stderr)


def below_gate(metrics: Mapping[str, float], gate: Store) -> list[str]:
    """Return a table, line by line, of the figures that miss the gate. It is empty if all pass."""
    rows = []
    for name, sign, wanted in (
        ("cancer_auc", ">=", gate.min_cancer_auc),
        ("calibration_error", "<=", gate.max_calibration_error),
        ("style_kept_or_unfamiliar", ">=", gate.min_style_kept),
        ("style_accepted_otherwise", "<=", gate.max_style_accepted_otherwise),
    ):
        got = metrics.get(f"out_of_fold_{name}", nan)  # NaN passes no comparison
        if not (got >= wanted if sign == ">=" else got <= wanted):
            rows.append(f"{name:<26}{f'{sign} {wanted:.3f}':>10}{got:>10.3f}")
    return [f"{'out-of-fold figure':<26}{'wanted':>10}{'got':>10}", *rows] if rows else []


def _fetch_report(run_id: str, folder: Path) -> Reported | None:
    """The figures of the test folder that the run holds, or None."""
    name = f"reports/{paths.TEST_METRICS.name}"
    if name not in tracking.artifacts(run_id, "reports"):
        return None
    return Reported.read(tracking.fetch(run_id, name, folder))


def _finish_card(model: Path, reported: Reported | None) -> None:
    """Add the test figures to the card in folder `model`, if they are of the graph there.

    Raises StageError if the card is not of that graph, or if one of them was changed.
    """
    card = ModelCard.read(model / CARD)
    try:
        if (model / SUMS).exists():  # older runs have none
            check_sums(model, GRAPH, CARD)
        digest = check(model / GRAPH, card.lineage.model_sha256)
    except Altered as error:
        raise StageError(f"run {card.lineage.run_id}: {error}; export again") from error
    if reported is None or reported.model_sha256 != digest:
        print(f"run {card.lineage.run_id}: {_NO_REPORT}", file=sys.stderr)
        return
    card.model_copy(update={"metrics": card.metrics | reported.metrics}).write(model / CARD)
    write_sums(model, GRAPH, CARD)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", type=Path, metavar="FOLDER", help="also copy graph, card and audit there")
    parser.add_argument("--champion", action="store_true", help="store the champion of MLflow's registry instead")
    arguments = parser.parse_args()
    if arguments.champion:
        runner.run(store_champion)
    else:
        runner.run(store, arguments.release)


if __name__ == "__main__":
    main()
