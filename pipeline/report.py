"""Stage report: measures the released graph on the test folder, answering as the service would.

Only this stage measures on the test images. Each opening adds a line to TEST_OPENINGS, because a test set that is often
opened to choose a model no longer tests it. The figures are given for all images and for those without a duplicate in
train or valid. Only the latter measure new images, so this stage first looks for duplicates again. Intervals come from
resampling whole scans, as out-of-fold.

Only this stage records the graph, card, figures, parameters and audit in the MLflow run. DVC may take earlier stages
from its run cache, but never this one, so the run has exactly these files.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from chestct.card import Estimate, JsonFile, Lineage, Metrics, ModelCard
from chestct.digests import sha256_of
from chestct.engine import Engine
from chestct.store import CARD, GRAPH
from pipeline.core import paths, runner, tracking
from pipeline.core.params import Params
from pipeline.images import input_facts
from pipeline.images.duplicates import require_no_duplicates
from pipeline.judging.calibration import answer
from pipeline.judging.metrics import Evaluation, write_key_figures


class Reported(JsonFile):
    """TEST_METRICS."""

    model_sha256: str
    """Digest of the graph that answered."""
    metrics: dict[str, Metrics]
    """`test`, and `test_without_twins` if there are test images without a duplicate."""


def report(params: Params) -> None:
    """Write TEST_METRICS, KEY_FIGURES and TEST_PLOTS, add to TEST_OPENINGS, and record all in the MLflow run.

    Raises DataError, before anything is counted or written, if an image listed without a duplicate has one.
    """
    graph = paths.RELEASE / GRAPH
    card = ModelCard.read(paths.RELEASE / CARD)
    with np.load(paths.TEST) as file:
        pixels, labels, unseen, names = file["pixels"], file["labels"], ~file["seen"], file["paths"]
        scans, facts = file["scans"], input_facts.from_arrays(file)
    with np.load(paths.POOL) as file:
        correlation = params.prepare.duplicate_correlation
        require_no_duplicates(pixels[unseen], names[unseen], file["pixels"], file["paths"], correlation)
    digest = sha256_of(graph)
    _count_opening(card.lineage, digest, len(labels), int(unseen.sum()))

    engine = Engine(graph, bfloat16=card.bfloat16 is not None, recheck=card.thresholds.refer_margin)
    scores = engine.infer(pixels)
    splits = {
        "test": (np.ones_like(unseen), "test folder, all images"),
        "test_without_twins": (unseen, "test folder, without images that are also in train or valid"),
    }
    metrics: dict[str, Metrics] = {}
    figures = {"out_of_fold": _out_of_fold(card)}
    for name, (chosen, words) in splits.items():
        if not chosen.any():
            write_key_figures(name, {"images": 0})
            continue
        some = [each for each, wanted in zip(facts, chosen, strict=True) if wanted]
        answers = answer(scores.probabilities[chosen], scores.ood_score[chosen], some, card)
        evaluation = Evaluation(
            answers, labels[chosen], groups=scans[chosen], resamples=params.report.bootstrap, seed=params.seed
        )
        metrics[name] = evaluation.metrics(words)
        write_key_figures(name, evaluation.key_figures())
        evaluation.draw(paths.TEST_PLOTS / name, words)
        figures[name] = evaluation.figures
        macro_f1 = evaluation.figures["macro_f1"]
        print(
            f"{words}: {len(answers.accepted)} images, macro F1 {macro_f1.value:.3f} "
            f"({macro_f1.low:.3f} to {macro_f1.high:.3f}), accuracy {evaluation.figures['accuracy'].value:.3f}"
        )
    Reported(model_sha256=digest, metrics=metrics).write(paths.TEST_METRICS)

    _record(card.lineage.run_id, graph, figures)
    tracking.log_model(card.lineage.run_id, graph, pixels[:1], engine.infer(pixels[:1])._asdict())
    tracking.log_artifact(card.lineage.run_id, paths.RELEASE, "release")
    tracking.finish_run(card.lineage.run_id, "FINISHED")


def _record(run_id: str, graph: Path, figures: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Reopen the MLflow run and log the figures of each split and the files of this and earlier stages."""
    tracking.reopen_run(run_id)
    if paths.HISTORY.exists():
        tracking.log_training(
            run_id, paths.HISTORY, paths.OUT_OF_FOLD
        )  # if MLflow did not answer when the training ended
    tracking.log_metrics(run_id, {tracking.SIZE: graph.stat().st_size / 1e6})
    for path in (paths.PARAMS, paths.AUDIT, paths.CONTACT_SHEET):
        tracking.log_artifact(run_id, path)
    for name, estimates in figures.items():
        tracking.log_metrics(run_id, _numbers(name, estimates))
    tracking.log_artifact(run_id, paths.OUT_OF_FOLD_PLOTS, "reports/out_of_fold")
    tracking.log_artifact(run_id, paths.QUANTISATION, "reports")
    tracking.log_artifact(run_id, paths.TEST_METRICS, "reports")
    tracking.log_artifact(run_id, paths.TEST_PLOTS, "reports/test")


def _out_of_fold(card: ModelCard) -> dict[str, Estimate]:
    """The out-of-fold figures of the card, so that a run always has the figures of its own graph."""
    found = card.metrics["out_of_fold"]
    whole = {name: getattr(found, name) for name, field in Metrics.model_fields.items() if field.annotation is Estimate}
    by_class = {
        f"{name}_{label}": getattr(figures, name)
        for label, figures in found.classes.items()
        for name in ("precision", "recall", "f1")
    }
    return {**whole, **by_class, **card.checks}


def _numbers(prefix: str, figures: Mapping[str, Estimate]) -> dict[str, float]:
    """Each figure as `prefix_name`, and its interval with `_low` and `_high`."""
    return {
        f"{prefix}_{name}{suffix}": number
        for name, figure in figures.items()
        for suffix, number in (("", figure.value), ("_low", figure.low), ("_high", figure.high))
    }


def _count_opening(lineage: Lineage, model_sha256: str, images: int, without_duplicate: int) -> None:
    paths.TEST_OPENINGS.parent.mkdir(parents=True, exist_ok=True)
    before = 0
    if paths.TEST_OPENINGS.exists():
        before = len(paths.TEST_OPENINGS.read_text(encoding="utf-8").splitlines())
    line = {
        "opened": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": lineage.run_id,
        "model_sha256": model_sha256,
        "data_source": lineage.data_source,
        "data_digest": lineage.data_digest,
        "images": images,
        "images_without_twins": without_duplicate,
    }
    with paths.TEST_OPENINGS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"the test folder was opened {before} times before this")


def main() -> None:
    runner.run(report)


if __name__ == "__main__":
    main()
