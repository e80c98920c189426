"""Stage export: one ONNX graph with all arithmetic on pixels, and the card beside it, checked to predict alike.

The graph takes `pixels` and gives `probabilities`, `ood_score` and `heatmaps` (chestct.engine describes them). Before
the convolutions' weights are rounded to float16, the logits that the serving engine computes must equal Keras' on real
images to `export.logit_tolerance`; afterwards the probabilities must stay within `export.probability_tolerance`. A
graph that misses either ends the stage, so none is stored that predicts otherwise than what was evaluated.
"""

import hashlib
import json
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
from keras import ops
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chestct.card import InputSpec, Lineage, Metrics, ModelCard
from chestct.engine import Engine, Scores
from chestct.store import CARD, GRAPH
from pipeline import ood, paths, stage, tracking
from pipeline.base_model import FEATURES, LOGITS, features_of
from pipeline.calibration import Calibration
from pipeline.classes import CLASSES, NORMAL, TITLES
from pipeline.errors import StageError
from pipeline.params import Params

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


class TrustHead(keras.layers.Layer):  # type: ignore[misc]
    """Feature map [N, h, w, F] to calibrated probabilities, OOD score and class-activation maps.

    The mean over a class's map plus its bias is the class's logit, so the maps cost nothing extra.
    """

    def __init__(self, head: keras.layers.Dense, temperature: float, distance: ood.OodModel) -> None:
        super().__init__(name="trust")
        self._kernel, self._bias = head.get_weights()
        self._temperature = np.float32(temperature)
        self._distance = distance

    def call(self, maps: Any) -> tuple[Any, Any, Any]:
        activations = ops.matmul(maps, self._kernel)
        logits = ops.mean(activations, axis=(1, 2)) + self._bias
        probabilities = ops.softmax(logits / self._temperature)
        return probabilities, self._score(ops.mean(maps, axis=(1, 2))), ops.transpose(activations, (0, 3, 1, 2))

    def _score(self, features: Any) -> Any:
        """pipeline.ood.score, in the graph."""
        model = self._distance
        length = ops.sqrt(ops.sum(ops.square(features), axis=1, keepdims=True))
        unit = features / ops.maximum(length, np.float32(1e-6))
        distances = []
        for mean in model.means:
            offset = unit - mean
            rest = ops.sum(ops.square(offset), axis=1) - ops.sum(
                ops.square(ops.matmul(offset, model.rest_directions)), axis=1
            )
            leading = ops.sum(ops.square(ops.matmul(offset, model.directions)), axis=1)
            distances.append(leading + rest * model.rest_scale)
        nearest = ops.min(ops.stack(distances, axis=1), axis=1)
        return ops.sqrt(nearest / np.float32(features.shape[1]))


def export(params: Params) -> None:
    """Write RELEASE (model.onnx and card.json) and log both into the MLflow run."""
    network = keras.models.load_model(paths.FINAL_MODEL, compile=False)
    with np.load(paths.POOL) as pool:
        pixels, labels = pool["pixels"], pool["labels"]
    calibration = Calibration.read(paths.CALIBRATION)
    distance = ood.fit(features_of(network, pixels), labels, len(CLASSES))

    paths.RELEASE.mkdir(parents=True, exist_ok=True)
    graph = paths.RELEASE / GRAPH
    exact = to_onnx(network, TrustHead(network.get_layer(LOGITS), calibration.temperature, distance))
    onnx.save(exact, graph)
    bias = network.get_layer(LOGITS).get_weights()[1]
    sample = pixels[np.linspace(0, len(pixels) - 1, min(CHECKED_IMAGES, len(pixels))).astype(int)]
    scores = Engine(graph).infer(sample)
    difference = check_logits(network.predict_on_batch(sample), scores, bias, params.export.logit_tolerance)
    print(f"logits equal Keras' to {difference:.1e} on {len(sample)} images")
    if params.export.weights == "float16":
        onnx.save(with_float16_weights(exact), graph)
        rounded = Engine(graph).infer(sample)
        moved = check_probabilities(scores, rounded, params.export.probability_tolerance)
        print(f"float16 weights move probabilities by {moved:.1e} at most")
        scores = rounded

    card = _card(params, calibration, bias, graph, len(labels))
    card.write(paths.RELEASE / CARD)
    run_id = card.lineage.run_id
    tracking.log_model(run_id, graph, sample, scores._asdict())
    tracking.log_artifact(run_id, paths.RELEASE, "release")
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB")


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
    model.doc_string = "chestct. Research and education only. Not a medical device."
    onnx.checker.check_model(model, full_check=True)
    return model


def with_float16_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose convolution kernels are stored as float16 and cast back when loaded; all else stays float32."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    kernels = {node.input[1] for node in rounded.graph.node if node.op_type == "Conv"}
    casts = []
    for tensor in rounded.graph.initializer:
        if tensor.name in kernels and tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_f16"))
            casts.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
    for position, cast in enumerate(casts):
        rounded.graph.node.insert(position, cast)
    onnx.checker.check_model(rounded, full_check=True)
    return rounded


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
    params: Params, calibration: Calibration, bias: NDArray[np.float32], graph: Path, image_count: int
) -> ModelCard:
    manifest = json.loads(paths.MANIFEST.read_text(encoding="utf-8"))
    return ModelCard(
        classes=CLASSES,
        normal=NORMAL,
        titles=TITLES,
        input=InputSpec(height=params.prepare.image_size, width=params.prepare.image_size),
        temperature=calibration.temperature,
        logit_bias=tuple(map(float, bias)),
        thresholds=calibration.thresholds,
        metrics={"out_of_fold": Metrics.model_validate_json(paths.OUT_OF_FOLD_CARD.read_bytes())},
        caveats=PHANTOM_CAVEATS if manifest["source"] == "synthetic" else CAVEATS,
        licence=LICENCE,
        lineage=Lineage(
            run_id=json.loads(paths.RUN.read_text(encoding="utf-8"))["run_id"],
            git_commit=tracking.git_commit(),
            data_source=manifest["source"],
            data_digest=manifest["digest"],
            backbone=params.base_model.backbone,
            weights=params.base_model.weights,
            image_count=image_count,
            model_sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )


def main() -> None:
    stage.run(export)


if __name__ == "__main__":
    main()
