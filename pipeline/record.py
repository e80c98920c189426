"""Stage record: puts the graph, its card and its out-of-fold figures into the MLflow run, and finishes the run.

Of the stages, only train and this one write into the run. DVC may take others from its run cache, but never this one,
because it has no output. So the run has exactly the files of one graph. The test folder stays closed: `make report`
opens it, and adds its figures to the run as a file.
"""

from pathlib import Path
from typing import Final

import numpy as np

from chestct.card import Estimate, Metrics, ModelCard
from chestct.engine import Engine
from chestct.store import CARD, GRAPH
from pipeline.core import paths, runner, tracking, tracking_models
from pipeline.core.params import Params
from pipeline.judging.worst_style import worst_style

_SHOWN: Final = tuple(
    f"out_of_fold_{name}"
    for name in (
        "cancer_auc",
        "accuracy",
        "macro_f1",
        "calibration_error",
        "style_kept_or_unfamiliar",
        "style_accepted_otherwise",
    )
)
"""The figures that are metrics of the run. Few of them fill a chart page, and the gate of `make store` reads some."""


def record(_: Params) -> None:
    """Reopen the MLflow run of the card, log the files and figures of this and earlier stages, and finish it."""
    graph = paths.RELEASE / GRAPH
    card = ModelCard.read(paths.RELEASE / CARD)
    run_id = card.lineage.run_id
    tracking.reopen_run(run_id)
    if paths.HISTORY.exists():
        # if MLflow did not answer when the training ended
        tracking.log_training(run_id, paths.HISTORY, paths.OUT_OF_FOLD)
    sizes = {tracking.SIZE: graph.stat().st_size / 1e6, tracking.SCANS: float(card.metrics["out_of_fold"].scans)}
    tracking.log_metrics(run_id, sizes)
    tracking.log_figures(run_id, _numbers("out_of_fold", card), shown=_SHOWN)
    for path in (paths.PARAMS, paths.AUDIT, paths.CONTACT_SHEET):
        tracking.log_artifact(run_id, path)
    tracking.log_artifact(run_id, paths.OUT_OF_FOLD_PLOTS, "reports/out_of_fold")
    tracking.log_artifact(run_id, paths.QUANTISATION, "reports")
    tracking.log_artifact(run_id, paths.RELEASE, "release")
    _log_model(run_id, graph, card)
    print(f"recorded in MLflow run {run_id}")


def _log_model(run_id: str, graph: Path, card: ModelCard) -> None:
    """Log the graph as an MLflow model and finish the run. The signature needs only shapes, so the picture is black."""
    black = np.zeros((1, card.input.height, card.input.width, card.input.channels), np.uint8)
    tracking_models.log_model(run_id, graph, black, Engine(graph).infer(black)._asdict())


def _numbers(split: str, card: ModelCard) -> dict[str, float]:
    """Each figure of the card's `split` as `split_name`, and its interval with `_low` and `_high`.

    They come from the card, so that a run always has the figures of its own graph.
    """
    found = card.metrics[split]
    figures = {
        **{name: getattr(found, name) for name, field in Metrics.model_fields.items() if field.annotation is Estimate},
        **{
            f"{name}_{label}": getattr(of_class, name)
            for label, of_class in found.classes.items()
            for name in ("precision", "recall", "f1")
        },
        **card.checks,
    }
    return {
        **{
            f"{split}_{name}{suffix}": number
            for name, figure in figures.items()
            for suffix, number in (("", figure.value), ("_low", figure.low), ("_high", figure.high))
        },
        **{f"{split}_{name}": value for name, value in worst_style(card.styles).items()},
    }


def main() -> None:
    runner.run(record)


if __name__ == "__main__":
    main()
