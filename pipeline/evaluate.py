"""Stage evaluate: what out-of-fold predictions say about the model, and the numbers that turn its scores to answers.

The numbers in CALIBRATION are fitted on all out-of-fold predictions. The reported figures come from answers that are
cross-fitted (see pipeline.calibration), with intervals from resampling whole visual clusters.
"""

import json

import numpy as np

from pipeline import paths, stage, tracking
from pipeline.calibration import cross_fit, fit
from pipeline.evaluation import Evaluation
from pipeline.params import Params

PREFIX = "out_of_fold"


def evaluate(params: Params) -> None:
    """Write CALIBRATION, OUT_OF_FOLD_METRICS, OUT_OF_FOLD_CARD and OUT_OF_FOLD_PLOTS, and log them to the run."""
    with np.load(paths.OUT_OF_FOLD) as file:
        logits, ood_scores, labels, folds, clusters = (
            file[name] for name in ("logits", "ood_scores", "labels", "folds", "clusters")
        )
    logits = logits.astype(np.float64)
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]

    calibration = fit(logits, ood_scores, labels, params.evaluate)
    calibration.write(paths.CALIBRATION)

    answers = cross_fit(logits, ood_scores, labels, folds, params.evaluate)
    evaluation = Evaluation(answers, labels, groups=clusters, resamples=params.evaluate.bootstrap, seed=params.seed)
    split = f"out-of-fold on train + valid, {len(np.unique(folds))} folds by visual cluster"
    paths.OUT_OF_FOLD_METRICS.parent.mkdir(parents=True, exist_ok=True)
    paths.OUT_OF_FOLD_METRICS.write_text(json.dumps(evaluation.summary(), indent=1) + "\n", encoding="utf-8")
    paths.OUT_OF_FOLD_CARD.write_text(evaluation.metrics(split).model_dump_json(indent=1) + "\n", encoding="utf-8")
    evaluation.draw(paths.OUT_OF_FOLD_PLOTS, split)

    evaluation.log(run_id, PREFIX)
    tracking.log_artifact(run_id, paths.OUT_OF_FOLD_PLOTS, "reports/out_of_fold")
    tracking.log_artifact(run_id, paths.CALIBRATION)
    figures = evaluation.figures
    print(
        f"out-of-fold: macro F1 {figures['macro_f1'].value:.3f} ({figures['macro_f1'].low:.3f} to "
        f"{figures['macro_f1'].high:.3f}), accuracy {figures['accuracy'].value:.3f}, "
        f"calibration error {figures['calibration_error'].value:.3f}, referred {figures['referred'].value:.1%}"
    )


def main() -> None:
    stage.run(evaluate)


if __name__ == "__main__":
    main()
