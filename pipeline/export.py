"""Stage export: write the ONNX graph that the service runs and its model card, and check that it predicts alike.

The graph takes `pixels` and gives `probabilities`, `ood_score` and `heatmaps` (chestct.engine describes them). Three
checks compare it with what was evaluated, and a graph that fails one ends the stage:

- The logits of the float32 graph equal Keras' on real images, to `export.logit_tolerance`.
- float16 weights move no probability by more than `export.probability_tolerance`.
- int8 weights and bfloat16 arithmetic move more, so the folds judge them: each fold's network is exported and rounded
  alike, and its answers to pictures that it has not seen are compared with those of its float32 graph
  (pipeline.graph.rounding_gate).
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from chestct.card import Estimate, InputSpec, Lineage, ModelCard, Rounding
from chestct.digests import sha256_of, write_sums
from chestct.engine import Engine
from chestct.store import CARD, GRAPH
from pipeline.core import paths, runner, tracking
from pipeline.core.params import Export, Params
from pipeline.graph.rounding import round_weights, spread
from pipeline.graph.rounding_cost import Slices, check_difference, infer, measure
from pipeline.graph.rounding_gate import agreement, check
from pipeline.graph.to_onnx import serving_graph
from pipeline.images import origin
from pipeline.images.classes import class_names, normal_name, titles
from pipeline.images.manifest import Manifest
from pipeline.judging.calibration import Calibration, OutOfFold
from pipeline.judging.probe_pictures import ProbePictures, read_sources
from pipeline.network.build import LOGITS
from pipeline.network.summary import summaries_of

CHECKED_IMAGES: Final = 64


def export(params: Params) -> None:
    """Write RELEASE (model.onnx, card.json and their digests) and QUANTISATION."""
    wanted = params.export
    network = keras.models.load_model(paths.FINAL_MODEL, compile=False)
    slices = Slices.load()
    pixels, labels = slices.pixels, slices.labels
    calibration = Calibration.read(paths.CALIBRATION)

    probe = ProbePictures.load()
    summaries = summaries_of(network, pixels), summaries_of(network, probe.pixels)
    fitted = probe.fit(*summaries, training=np.ones(len(pixels), bool))
    exact = serving_graph(network, pixels, labels, calibration, params, fitted)
    bias = network.get_layer(LOGITS).get_weights()[1]
    sample = spread(pixels, CHECKED_IMAGES)
    scores = infer(exact, sample)
    logits = scores.heatmaps.mean(axis=(2, 3)) + bias
    expected = network.predict_on_batch(sample)
    difference = check_difference(expected, logits, wanted.logit_tolerance, "the graph's logits differ from Keras'")
    print(f"logits equal Keras' to {difference:.1e} on {len(sample)} images")

    figures: dict[str, float] = {}
    paths.RELEASE.mkdir(parents=True, exist_ok=True)
    graph = paths.RELEASE / GRAPH
    onnx.save(round_weights(exact, pixels, wanted), graph)
    if wanted.weights == "float16":
        figures["probability_moved"] = check_difference(
            scores.probabilities,
            Engine(graph).infer(sample).probabilities,
            wanted.probability_tolerance,
            "float16 weights move a probability",
        )
        print(f"float16 weights move probabilities by {figures['probability_moved']:.1e} at most")
    served = Engine(graph, bfloat16=wanted.arithmetic == "bfloat16", recheck=calibration.thresholds.refer_margin)
    if wanted.arithmetic == "bfloat16" and not served.bfloat16:
        print("this CPU has no instructions for bfloat16, so what it costs is not measured, and the card forbids it")
    judged: dict[str, Estimate] = {}
    if wanted.weights == "int8" or served.bfloat16:
        judged, described = measure(slices, probe, calibration, params)
        released = agreement(infer(exact, pixels).probabilities, served.infer(pixels).probabilities)
        figures |= described | {"released_agreement": released}
        print(
            f"rounded, the held-out folds have an accuracy of {figures['served_accuracy']:.4f} instead of "
            f"{figures['float32_accuracy']:.4f} and the same label on {judged['agreement'].value:.1%} of the images"
        )
    _write_figures(wanted, figures, judged)
    if judged:
        check(judged, figures["released_agreement"], wanted)

    costs = {name: round(judged[name].value, 4) for name in Rounding.model_fields} if served.bfloat16 else None
    cost = Rounding(**costs) if costs else None
    _card(params, calibration, bias, graph, len(labels), cost).write(paths.RELEASE / CARD)
    write_sums(paths.RELEASE, GRAPH, CARD)
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB")


def _write_figures(wanted: Export, figures: dict[str, float], judged: dict[str, Estimate]) -> None:
    """Write QUANTISATION. The ends of a judged figure's interval are `…_low` and `…_high`."""
    numbers = dict(figures)
    for name, figure in judged.items():
        numbers |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    rounded = {name: round(value, 4) for name, value in numbers.items()}
    content = {"weights": wanted.weights, "arithmetic": wanted.arithmetic, **rounded}
    paths.QUANTISATION.parent.mkdir(parents=True, exist_ok=True)
    paths.QUANTISATION.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _card(
    params: Params,
    calibration: Calibration,
    bias: NDArray[np.float32],
    graph: Path,
    image_count: int,
    bfloat16: Rounding | None,
) -> ModelCard:
    """Build the card from the files of earlier stages. `bfloat16` is what it costs, or None if it is not allowed."""
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]
    source = params.data.source
    audit = json.loads(paths.AUDIT.read_text(encoding="utf-8"))
    with np.load(paths.EXTRA) as file:
        extra = len(file["allowed"])
    size = params.prepare.image_size
    found = OutOfFold.read(paths.OUT_OF_FOLD_CARD)
    accuracies = {name: baseline["accuracy"].value for name, baseline in found.baselines.items()}
    return ModelCard(
        classes=class_names(),
        normal=normal_name(),
        titles=titles(),
        input=InputSpec(height=size, width=size),
        logit_bias=tuple(map(float, bias)),
        bfloat16=bfloat16,
        **dict(calibration),
        **{**dict(found), "metrics": {"out_of_fold": found.metrics}},
        probe_sources=read_sources(),
        caveats=origin.caveats(source, audit, accuracies, extra),
        licence=origin.licence(source, params.base_model.weights, extra),
        lineage=Lineage(
            run_id=run_id,
            git_commit=tracking.git_commit(),
            trained_commit=tracking.trained_commit(run_id),
            data_source=source,
            data_digest=Manifest.read().digest,
            backbone=params.base_model.backbone,
            weights=params.base_model.weights,
            image_count=image_count,
            model_sha256=sha256_of(graph),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )


def main() -> None:
    runner.run(export)


if __name__ == "__main__":
    main()
