"""Stage export: write the ONNX graph that the service runs and its model card, and check that it predicts alike.

The graph takes `pixels` and gives `probabilities`, `ood_score`, `chest_ct` and `heatmaps` (chestct.engine has them).
Two checks compare it with what was evaluated, and a graph that fails one ends the stage:

- The logits of the float32 graph equal Keras' on real images, to `export.logit_tolerance`.
- float16 weights move no probability by more than `export.probability_tolerance`.

int8 and bfloat16 move more, so the folds judge them: each fold's network is exported and rounded alike, and its answers
to pictures that it has not seen are compared with those of its float32 graph (pipeline.graph.rounding_gate). The card
allows the arithmetics that pass.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from chestct.arithmetic import ARITHMETICS, Arithmetic, Int8, Rounding
from chestct.card import Estimate, InputSpec, Lineage, ModelCard
from chestct.digests import sha256_of, write_sums
from chestct.engine import Engine, has_instructions
from chestct.store import CARD, GRAPH
from pipeline.core import paths, runner, tracking
from pipeline.core.params import Params
from pipeline.graph.rounding import measure_ranges, round_weights, spread
from pipeline.graph.rounding_cost import Slices, check_difference, close_calls_of, compare_released, infer, measure
from pipeline.graph.rounding_gate import find_missed
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

    figures: dict[str, Any] = {"weights": wanted.weights}
    paths.RELEASE.mkdir(parents=True, exist_ok=True)
    graph = paths.RELEASE / GRAPH
    onnx.save(round_weights(exact, wanted), graph)
    if wanted.weights == "float16":
        moved = check_difference(
            scores.probabilities,
            Engine(graph).infer(sample).probabilities,
            wanted.probability_tolerance,
            "float16 weights move a probability",
        )
        figures["probability_moved"] = round(moved, 4)
        print(f"float16 weights move probabilities by {moved:.1e} at most")
    judged, allowed = _judge(exact, graph, slices, probe, calibration, params)
    figures |= judged
    paths.QUANTISATION.parent.mkdir(parents=True, exist_ok=True)
    paths.QUANTISATION.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    _card(params, calibration, bias, graph, len(labels), allowed).write(paths.RELEASE / CARD)
    write_sums(paths.RELEASE, GRAPH, CARD)
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB")


def _judge(
    exact: onnx.ModelProto,
    graph: Path,
    slices: Slices,
    probe: ProbePictures,
    calibration: Calibration,
    params: Params,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of each rounded arithmetic, and the costs of those that the card may allow."""
    wanted, pixels = params.export, slices.pixels
    numbers: dict[str, Any] = {}
    allowed: dict[str, Any] = {}
    truth = infer(exact, pixels)
    close_calls = close_calls_of(params, calibration)
    for arithmetic, (judged, figures) in measure(slices, probe, calibration, params, _tried(wanted.arithmetic)).items():
        options: dict[str, Any] = {"arithmetic": arithmetic, "close_calls": close_calls}
        if arithmetic == "int8":
            options["ranges"] = measure_ranges(exact, pixels, wanted)
        released = compare_released(truth, Engine(graph, **options).infer(pixels), slices.facts, calibration)
        numbers[arithmetic] = _numbers(figures | released, judged)
        print(
            f"in {arithmetic}, the held-out folds have an accuracy of {figures['served_accuracy']:.4f} instead of "
            f"{figures['float32_accuracy']:.4f}, and the same label on {judged['agreement'].value:.1%} of the images"
        )
        if missed := find_missed(judged, released, wanted):
            print(f"{arithmetic} costs too much, so the card does not allow it: {'; '.join(missed)}")
            continue
        costs = {name: round(judged[name].value, 4) for name in Rounding.model_fields}
        allowed[arithmetic] = Int8(**costs, ranges=options["ranges"]) if arithmetic == "int8" else Rounding(**costs)
    return numbers, allowed


def _tried(fastest: Arithmetic) -> list[Arithmetic]:
    """The rounded arithmetics from `fastest` on for which this CPU has instructions. Print which ones it lacks."""
    rounded = [each for each in ARITHMETICS[ARITHMETICS.index(fastest) :] if each != "float32"]
    for arithmetic in rounded:
        if not has_instructions(arithmetic):
            print(f"this CPU has no instructions for {arithmetic}, so its cost is unknown, and the card forbids it")
    return [each for each in rounded if has_instructions(each)]


def _numbers(figures: dict[str, float], judged: dict[str, Estimate]) -> dict[str, float]:
    """All figures rounded. The ends of a judged figure's interval are `…_low` and `…_high`."""
    numbers = dict(figures)
    for name, figure in judged.items():
        numbers |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return {name: round(value, 4) for name, value in numbers.items()}


def _card(
    params: Params,
    calibration: Calibration,
    bias: NDArray[np.float32],
    graph: Path,
    image_count: int,
    allowed: dict[str, Any],
) -> ModelCard:
    """Build the card from the files of earlier stages. `allowed`: what each rounded arithmetic costs."""
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
        **allowed,
        close_call=params.export.close_call,
        close_limit=params.export.close_limit,
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
