"""Opens the test folder: measures the graph of the last training on it, answering as the service would.

This is no stage of dvc.yaml. It runs only if it is asked for: `make report`. Each opening adds a line to TEST_OPENINGS,
because a test set that is often opened to choose a model no longer tests it. The figures are given for all images and
for those of scans that were not found in train or valid. The latter are searched for duplicates once more before
anything is measured. Intervals come from resampling whole scans, as out-of-fold.

The figures go into TEST_METRICS and, as a file, into the MLflow run of the graph. They are no metrics of the run or of
DVC, so no table of experiments shows them.
"""

import shutil

import numpy as np

from chestct.card import Lineage, Metrics, ModelCard
from chestct.digests import sha256_of
from chestct.document import JsonFile
from chestct.engine import load
from chestct.store import CARD, GRAPH
from pipeline.core import openings, paths, runner, tracking
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images import input_facts
from pipeline.images.duplicates import require_no_duplicates
from pipeline.judging.calibration import answer
from pipeline.judging.metrics import Evaluation


class Reported(JsonFile):
    """TEST_METRICS."""

    model_sha256: str
    """Digest of the graph that answered."""
    metrics: dict[str, Metrics]
    """`test`, and `test_new_scans` if there are test images of a scan that was not found in train or valid."""


def report(params: Params) -> None:
    """Add to TEST_OPENINGS, write TEST_METRICS and TEST_PLOTS, and copy both into the MLflow run.

    Raises DataError, before anything is counted or written, if there is no graph, or if an image that is listed as of a
    new scan has a duplicate.
    """
    card = _read_card()
    graph = paths.RELEASE / GRAPH
    with np.load(paths.TEST) as file:
        pixels, labels, unseen, names = file["pixels"], file["labels"], ~file["seen"], file["paths"]
        scans, facts = file["scans"], input_facts.from_arrays(file)
    with np.load(paths.POOL) as file:
        correlation = params.prepare.duplicate_correlation
        require_no_duplicates(pixels[unseen], names[unseen], file["pixels"], file["paths"], correlation)
    digest = sha256_of(graph)
    _count_opening(card.lineage, digest, len(labels), int(unseen.sum()))

    engine = load(graph, card)
    scores = engine.infer(pixels)
    splits = {
        "test": (np.ones_like(unseen), "test folder, all images"),
        "test_new_scans": (unseen, "test folder, images of scans that were not found in train or valid"),
    }
    metrics: dict[str, Metrics] = {}
    shutil.rmtree(paths.TEST_PLOTS, ignore_errors=True)  # plots of an earlier opening
    for name, (chosen, words) in splits.items():
        if not chosen.any():
            continue
        some = [each for each, wanted in zip(facts, chosen, strict=True) if wanted]
        answers = answer(scores.probabilities[chosen], scores.ood_score[chosen], scores.chest_ct[chosen], some, card)
        evaluation = Evaluation(
            answers, labels[chosen], groups=scans[chosen], resamples=params.report.bootstrap, seed=params.seed
        )
        metrics[name] = evaluation.metrics(words)
        evaluation.draw(paths.TEST_PLOTS / name, words)
        macro_f1 = evaluation.figures["macro_f1"]
        print(
            f"{words}: {len(answers.accepted)} images, macro F1 {macro_f1.value:.3f} "
            f"({macro_f1.low:.3f} to {macro_f1.high:.3f}), accuracy {evaluation.figures['accuracy'].value:.3f}"
        )
    Reported(model_sha256=digest, metrics=metrics).write(paths.TEST_METRICS)
    tracking.log_artifact(card.lineage.run_id, paths.TEST_METRICS, "reports")
    tracking.log_artifact(card.lineage.run_id, paths.TEST_PLOTS, "reports/test")


def _read_card() -> ModelCard:
    try:
        return ModelCard.read(paths.RELEASE / CARD)
    except FileNotFoundError as error:
        raise DataError(f"no {error.filename}; `make train` makes the graph that is measured") from error


def _count_opening(lineage: Lineage, model_sha256: str, images: int, of_new_scans: int) -> None:
    earlier = openings.record(
        paths.TEST_OPENINGS,
        run_id=lineage.run_id,
        model_sha256=model_sha256,
        data_source=lineage.data_source,
        data_digest=lineage.data_digest,
        images=images,
        images_of_new_scans=of_new_scans,
    )
    before = sum(each["data_digest"] == lineage.data_digest for each in earlier)
    print(f"the test folder of these data was opened {before} times before this")


def main() -> None:
    runner.run(report)


if __name__ == "__main__":
    main()
