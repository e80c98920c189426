"""Stage report: the released graph on the test folder, as the service would answer.

The only place that opens the test images. Each opening adds a line to TEST_OPENINGS, since a test set that is looked at
often, and acted upon, is no test any more. Figures are given for all images and for those without twins in train or
valid; only the latter say how the model does on what it has not seen. That they have none is compared here once more,
pixels with pixels, before there is any figure. Intervals resample whole clusters of look-alikes, as out-of-fold.

It is also the stage that records: graph, card, figures, parameters and audit go into the MLflow run together, from here
alone. DVC never takes this stage from its run cache, as it may those before it, so the run holds what lies here.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from chestct.card import Estimate, Frozen, Lineage, Metrics, ModelCard
from chestct.engine import Engine
from chestct.store import CARD, GRAPH
from pipeline.core import paths, runner, tracking
from pipeline.core.params import Params
from pipeline.images.duplicates import require_no_twins
from pipeline.images.input_facts import read_facts
from pipeline.judging.calibration import answer
from pipeline.judging.metrics import Evaluation, write_key_figures


class Reported(Frozen):
    """TEST_METRICS."""

    model_sha256: str
    """Of the graph that answered."""
    metrics: dict[str, Metrics]
    """`test`, and `test_without_twins` where there are such images."""


def report(params: Params) -> None:
    """Write TEST_METRICS, KEY_FIGURES and TEST_PLOTS, add to TEST_OPENINGS, log all but the training, finish the run.

    Raises DataError, before anything is counted or written, where an image counted as without a twin has one.
    """
    graph = paths.RELEASE / GRAPH
    card = ModelCard.read(paths.RELEASE / CARD)
    with np.load(paths.TEST) as file:
        pixels, labels, alone, names = file["pixels"], file["labels"], ~file["twins"], file["paths"]
        clusters, facts = file["clusters"], read_facts(file)
    with np.load(paths.POOL) as file:
        correlation = params.prepare.duplicate_correlation
        require_no_twins(pixels[alone], names[alone], file["pixels"], file["paths"], correlation)
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    _count_opening(card.lineage, digest, len(labels), int(alone.sum()))

    engine = Engine(graph, bfloat16=card.bfloat16 is not None, recheck=card.thresholds.refer_margin)
    scores = engine.infer(pixels)
    splits = {
        "test": (np.ones_like(alone), "test folder, all images"),
        "test_without_twins": (alone, "test folder, without images that stand in train or valid"),
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
            answers, labels[chosen], groups=clusters[chosen], resamples=params.report.bootstrap, seed=params.seed
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
    reported = Reported(model_sha256=digest, metrics=metrics)
    paths.TEST_METRICS.write_text(reported.model_dump_json(indent=1) + "\n", encoding="utf-8")

    run_id = card.lineage.run_id
    tracking.reopen_run(run_id)
    if paths.HISTORY.exists():
        tracking.log_training(run_id, paths.HISTORY)  # where MLflow did not answer when the training ended
    tracking.log_metrics(run_id, {tracking.SIZE: graph.stat().st_size / 1e6})
    for path in (paths.PARAMS, paths.AUDIT, paths.CONTACT_SHEET):
        tracking.log_artifact(run_id, path)
    for name, estimates in figures.items():
        tracking.log_metrics(run_id, _numbers(name, estimates))
    tracking.log_artifact(run_id, paths.OUT_OF_FOLD_PLOTS, "reports/out_of_fold")
    tracking.log_artifact(run_id, paths.QUANTISATION, "reports")
    tracking.log_artifact(run_id, paths.TEST_METRICS, "reports")
    tracking.log_artifact(run_id, paths.TEST_PLOTS, "reports/test")
    tracking.log_model(run_id, graph, pixels[:1], engine.infer(pixels[:1])._asdict())
    tracking.log_artifact(run_id, paths.RELEASE, "release")
    tracking.finish_run(run_id, "FINISHED")


def _out_of_fold(card: ModelCard) -> dict[str, Estimate]:
    """The card's own figures, so that a run is never chosen by another graph's."""
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


def _count_opening(lineage: Lineage, model_sha256: str, images: int, without_twins: int) -> None:
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
        "images_without_twins": without_twins,
    }
    with paths.TEST_OPENINGS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"the test folder was opened {before} times before this")


def main() -> None:
    runner.run(report)


if __name__ == "__main__":
    main()
