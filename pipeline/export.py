"""Stage export: one ONNX graph with all arithmetic on pixels, and the card beside it, checked to predict alike.

The graph takes `pixels` and gives `probabilities`, `ood_score` and `heatmaps` (chestct.engine describes them). Before
the convolutions' weights are rounded to float16, the logits that the serving engine computes must equal Keras' on real
images to `export.logit_tolerance`; afterwards the probabilities must stay within `export.probability_tolerance`. int8
weights and bfloat16 arithmetic move them further, so what is served with them is judged on the folds: each fold's
network is exported and rounded alike, with int8's ranges from the other folds, and answers the held-out images beside
its exact graph. A graph that misses a bound ends the stage, so none is stored that predicts otherwise than what was
evaluated.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
from keras import ops
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chestct.card import InputSpec, Lineage, ModelCard, Rounding, Scaling
from chestct.digests import sha256_of, write_sums
from chestct.engine import Engine, Scores
from chestct.image import Facts
from chestct.store import CARD, GRAPH
from pipeline.base_model import FEATURES, LOGITS, features_of
from pipeline.core import paths, runner, tracking
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.graph import rounding
from pipeline.graph.grey import fold_grey
from pipeline.images.classes import CLASSES, NORMAL, TITLES
from pipeline.images.input_facts import read_facts
from pipeline.judging import ood
from pipeline.judging.calibration import Answers, Calibration, OutOfFold, answer

CHECKED_IMAGES: Final = 64
OPSET: Final = 18
OUTPUTS: Final = ("probabilities", "ood_score", "heatmaps")

CAVEATS: Final = (
    "One public collection of single slices without patient identifiers: slices of one scan are kept together only as "
    "far as they look alike, so figures on new patients are likely lower.",
    "Normal slices come from other sources than the cancers, differ in size and windowing, and a model can lean on it.",
    "The test split shares images with train and valid; figures without those twins are the ones to look at.",
    "Only chest CT of these four classes: other diseases are not known to the model and may get any label.",
)
PHANTOM_CAVEATS: Final = ("Trained and measured on drawn phantoms. The figures say nothing about chest CT.",)
LICENCE: Final = (
    "Code: MIT. Weights derived from the Kaggle data set mohamedhanyyy/chest-ctscan-images, stated there as ODbL with "
    "contents copyright of their original authors, and from ImageNet weights named in the lineage."
)
PHANTOM_LICENCE: Final = "Code and drawn phantoms: MIT."


class TrustHead(keras.layers.Layer):  # type: ignore[misc]
    """Feature map [N, h, w, F] to calibrated probabilities, OOD score and class-activation maps.

    The mean over a class's map plus its bias is the class's logit, so the maps cost nothing extra.
    """

    def __init__(self, head: keras.layers.Dense, scaling: Scaling, unlikeness: ood.Score) -> None:
        super().__init__(name="trust")
        self._kernel, self._bias = head.get_weights()
        self._scale, self._shift = np.array(scaling.scale, np.float32), np.array(scaling.shift, np.float32)
        self._unlikeness = unlikeness

    def call(self, maps: Any) -> tuple[Any, Any, Any]:
        activations = ops.matmul(maps, self._kernel)
        logits = ops.mean(activations, axis=(1, 2)) + self._bias
        probabilities = ops.softmax(logits * self._scale + self._shift)
        ood_score = self._unlikeness(ops.mean(maps, axis=(1, 2)), ops)
        return probabilities, ood_score, ops.transpose(activations, (0, 3, 1, 2))


def export(params: Params) -> None:
    """Write RELEASE (model.onnx, card.json and their digests) and QUANTISATION."""
    network = keras.models.load_model(paths.FINAL_MODEL, compile=False)
    with np.load(paths.POOL) as pool, np.load(paths.FACTS) as measured:
        pixels, labels, folds, facts = pool["pixels"], pool["labels"], pool["folds"], read_facts(measured)
    calibration = Calibration.read(paths.CALIBRATION)

    paths.RELEASE.mkdir(parents=True, exist_ok=True)
    graph = paths.RELEASE / GRAPH
    exact = trained_graph(network, pixels, labels, calibration, params)
    onnx.save(exact, graph)
    bias = network.get_layer(LOGITS).get_weights()[1]
    sample = rounding.spread(pixels, CHECKED_IMAGES)
    scores = Engine(graph).infer(sample)
    difference = check_logits(network.predict_on_batch(sample), scores, bias, params.export.logit_tolerance)
    print(f"logits equal Keras' to {difference:.1e} on {len(sample)} images")
    figures: dict[str, float] = {}
    if params.export.weights != "float32":
        onnx.save(rounded(exact, pixels, params), graph)
    if params.export.weights == "float16":
        figures["probability_moved"] = check_probabilities(
            scores, Engine(graph).infer(sample), params.export.probability_tolerance
        )
        print(f"float16 weights move probabilities by {figures['probability_moved']:.1e} at most")
    served = Engine(graph, bfloat16=params.export.arithmetic == "bfloat16", recheck=calibration.thresholds.refer_margin)
    if params.export.arithmetic == "bfloat16" and not served.bfloat16:
        print("this CPU has no instructions for bfloat16, so what it costs is not measured, and the card forbids it")
    if params.export.weights == "int8" or served.bfloat16:
        figures |= measure_rounding(pixels, labels, folds, facts, calibration, params)
        with temporary_graph(exact) as path:
            exact_probabilities = Engine(path).infer(pixels).probabilities
        figures["released_agreement"] = rounding.agreement(exact_probabilities, served.infer(pixels).probabilities)
    _write_figures(params, figures)
    if "agreement" in figures:
        rounding.check(figures, params.export)
    bfloat16 = (
        Rounding(**{name: round(figures[name], 4) for name in Rounding.model_fields}) if served.bfloat16 else None
    )

    card = _card(params, calibration, bias, graph, len(labels), bfloat16)
    card.write(paths.RELEASE / CARD)
    write_sums(paths.RELEASE, GRAPH, CARD)
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB")


def trained_graph(
    network: keras.Model,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    calibration: Calibration,
    params: Params,
) -> onnx.ModelProto:
    """The serving graph of `network`, which was trained on these images; float32."""
    unlikeness = ood.fit(params.evaluate.ood_score, features_of(network, pixels), labels, len(CLASSES))
    return to_onnx(network, TrustHead(network.get_layer(LOGITS), calibration.scaling, unlikeness))


def rounded(exact: onnx.ModelProto, pixels: NDArray[np.uint8], params: Params) -> onnx.ModelProto:
    """The graph with weights as `export.weights` wants them; `pixels` are those that int8's ranges come from."""
    if params.export.weights == "float16":
        return with_float16_weights(exact)
    if params.export.weights == "int8":
        return rounding.quantise(exact, rounding.spread(pixels, params.export.calibration_images))
    return exact


def measure_rounding(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    facts: Sequence[Facts],
    calibration: Calibration,
    params: Params,
) -> dict[str, float]:
    """What rounded weights and arithmetic cost, by pipeline.graph.rounding.compare over all folds.

    Each image is answered by a network that never saw it.
    """
    parts: list[tuple[NDArray[np.int64], Answers, Answers]] = []
    for fold in np.unique(folds):
        held_out = folds == fold
        network = keras.models.load_model(paths.fold_model(fold), compile=False)
        exact = trained_graph(network, pixels[~held_out], labels[~held_out], calibration, params)
        bfloat16 = params.export.arithmetic == "bfloat16"
        held_out_facts = [facts[int(index)] for index in np.flatnonzero(held_out)]
        first, second = (
            _answers(graph, pixels[held_out], held_out_facts, calibration, bfloat16=arithmetic)
            for graph, arithmetic in ((exact, False), (rounded(exact, pixels[~held_out], params), bfloat16))
        )
        parts.append((labels[held_out], first, second))
    exact_answers, served_answers = (
        Answers(*map(np.concatenate, zip(*(part[which] for part in parts), strict=True))) for which in (1, 2)
    )
    figures = rounding.compare(exact_answers, served_answers, np.concatenate([part[0] for part in parts]))
    print(
        f"rounded, the held-out folds have an accuracy of {figures['served_accuracy']:.4f} instead of "
        f"{figures['float32_accuracy']:.4f} and the same label on {figures['agreement']:.1%} of the images"
    )
    return figures


def _answers(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    facts: Sequence[Facts],
    calibration: Calibration,
    *,
    bfloat16: bool,
) -> Answers:
    """As the service would answer, by its engine."""
    with temporary_graph(model) as path:
        recheck = calibration.thresholds.refer_margin
        scores = Engine(path, batch_sizes=(1,), bfloat16=bfloat16, recheck=recheck).infer(pixels)
    return answer(scores.probabilities, scores.ood_score, facts, calibration)


@contextlib.contextmanager
def temporary_graph(model: onnx.ModelProto) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        onnx.save(model, path)
        yield path


def _write_figures(params: Params, figures: dict[str, float]) -> None:
    paths.QUANTISATION.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: round(value, 4) for name, value in figures.items()}
    content = {"weights": params.export.weights, "arithmetic": params.export.arithmetic, **kept}
    paths.QUANTISATION.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def to_onnx(network: keras.Model, head: TrustHead) -> onnx.ModelProto:
    """The serving graph: `network` up to its features, then `head`; float32, batch dimension free."""
    serving = keras.Model(network.input, head(network.get_layer(FEATURES).input))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        signature = [keras.InputSpec(shape=network.input.shape, dtype="uint8", name="pixels")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Keras mends tf2onnx for NumPy 2, and NumPy remarks on it
            serving.export(path, format="onnx", verbose=False, input_signature=signature, opset_version=OPSET)
        model = onnx.load(path)
    _rename(model, {model.graph.input[0].name: "pixels"})
    _rename(model, dict(zip([output.name for output in model.graph.output], OUTPUTS, strict=True)))
    model = fold_grey(model)
    model.doc_string = "chestct. Research and education only. Not a medical device."
    onnx.checker.check_model(model, full_check=True)
    return model


def with_float16_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose convolution kernels are stored as float16 and cast back when loaded; all else stays float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kernels = {node.input[1] for node in result.graph.node if node.op_type == "Conv"}
    casts = []
    for tensor in result.graph.initializer:
        if tensor.name in kernels and tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_f16"))
            casts.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
    for position, cast in enumerate(casts):
        result.graph.node.insert(position, cast)
    onnx.checker.check_model(result, full_check=True)
    return result


def check_logits(expected: NDArray[np.float32], scores: Scores, bias: NDArray[np.float32], tolerance: float) -> float:
    """The largest difference of logits [N, classes] as Keras and as the serving engine compute them.

    Raises StageError (exit code 3) above the tolerance.
    """
    difference = float(np.abs(scores.heatmaps.mean(axis=(2, 3)) + bias - expected).max())
    if not difference <= tolerance:
        raise StageError(f"the graph's logits differ from Keras' by {difference:.1e}, allowed is {tolerance:.1e}", 3)
    return difference


def check_probabilities(exact: Scores, rounded: Scores, tolerance: float) -> float:
    """The largest change of a probability by rounding weights. Raises StageError (exit code 3) above the tolerance."""
    moved = float(np.abs(exact.probabilities - rounded.probabilities).max())
    if not moved <= tolerance:
        raise StageError(f"float16 weights move a probability by {moved:.1e}, allowed is {tolerance:.1e}", 3)
    return moved


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)


def _card(
    params: Params,
    calibration: Calibration,
    bias: NDArray[np.float32],
    graph: Path,
    image_count: int,
    bfloat16: Rounding | None,
) -> ModelCard:
    run_id = json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"]
    manifest = json.loads(paths.MANIFEST.read_text(encoding="utf-8"))
    synthetic = manifest["source"] == "synthetic"
    found = OutOfFold.model_validate_json(paths.OUT_OF_FOLD_CARD.read_bytes())
    return ModelCard(
        classes=CLASSES,
        normal=NORMAL,
        titles=TITLES,
        input=InputSpec(height=params.prepare.image_size, width=params.prepare.image_size),
        scaling=calibration.scaling,
        logit_bias=tuple(map(float, bias)),
        thresholds=calibration.thresholds,
        input_limits=calibration.input_limits,
        metrics={"out_of_fold": found.metrics},
        folds=found.folds,
        baselines=found.baselines,
        checks=found.checks,
        others=found.others,
        ood_scores=found.ood_scores,
        bfloat16=bfloat16,
        caveats=PHANTOM_CAVEATS if synthetic else CAVEATS,
        licence=PHANTOM_LICENCE if synthetic else LICENCE,
        lineage=Lineage(
            run_id=run_id,
            git_commit=tracking.git_commit(),
            trained_commit=tracking.trained_commit(run_id),
            data_source=manifest["source"],
            data_digest=manifest["digest"],
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
