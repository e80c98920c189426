"""The serving graph: a trained network, its calibration, its OOD score and its probe as one ONNX graph."""

import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import onnx
import onnxruntime as ort
from keras import ops
from numpy.typing import NDArray

from chestct.card import Scaling
from chestct.store import GRAPH
from pipeline.core.params import Params
from pipeline.graph.scaling import append_scaling
from pipeline.images.classes import class_count
from pipeline.judging import ood
from pipeline.judging.calibration import Calibration
from pipeline.judging.chest_ct import LinearProbe
from pipeline.network.backbones import BACKBONES
from pipeline.network.build import CHANNELS, LOGITS, features_of
from pipeline.network.summary import inputs_of, sum_up

OPSET: Final = 18
OUTPUTS: Final = ("logits", "ood_score", "chest_ct", "heatmaps")
"""Names of what TrustHead gives. chestct.engine describes the graph's outputs; its input is `pixels`."""


class TrustHead(keras.layers.Layer):  # type: ignore[misc]
    """Turns pipeline.network.summary's inputs into logits, OOD scores, `chest_ct` and class-activation maps.

    The last input is the feature map. The mean of a class's map plus its bias is the class's logit, so the maps cost
    nothing extra. The graph turns the
    logits into probabilities by `scaling`.
    """

    def __init__(self, head: keras.layers.Dense, scaling: Scaling, ood_score: ood.Score, probe: LinearProbe) -> None:
        super().__init__(name="trust")
        self._kernel, self._bias = head.get_weights()
        self.scaling = scaling
        self._ood_score = ood_score
        self._probe = probe

    def call(self, inputs: list[Any]) -> tuple[Any, Any, Any, Any]:
        maps = inputs[-1]
        # A convolution keeps the layout of the maps. A product of matrices would have them transposed first.
        activations = ops.conv(maps, self._kernel[np.newaxis, np.newaxis])
        logits = ops.mean(activations, axis=(1, 2)) + self._bias
        ood_score = self._ood_score(ops.mean(maps, axis=(1, 2)), ops)
        chest_ct = self._probe(sum_up(*inputs), ops)
        return logits, ood_score, chest_ct, ops.transpose(activations, (0, 3, 1, 2))


def serving_graph(
    network: keras.Model,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    calibration: Calibration,
    params: Params,
    probe: LinearProbe,
) -> onnx.ModelProto:
    """Return the float32 graph of `network` with its `probe`.

    The OOD score is fitted on the training images [N, S, S, 1] of the network.
    """
    ood_score = ood.fit(params.evaluate.ood_score, features_of(network, pixels), labels, class_count())
    return to_onnx(network, TrustHead(network.get_layer(LOGITS), calibration.scaling, ood_score, probe))


def to_onnx(network: keras.Model, head: TrustHead) -> onnx.ModelProto:
    """Export `network` up to its feature map, then `head` and its scaling. The batch dimension is free."""
    if BACKBONES[network.name].equal_channels:
        network = _with_one_channel(network)
    serving = keras.Model(network.input, head(inputs_of(network)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        signature = [keras.InputSpec(shape=network.input.shape, dtype="uint8", name="pixels")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # NumPy 2 warns about how Keras patches tf2onnx
            serving.export(path, format="onnx", verbose=False, input_signature=signature, opset_version=OPSET)
        model = onnx.load(path)
    names = {output.name: name for output, name in zip(model.graph.output, OUTPUTS, strict=True)}
    for field in (field for node in model.graph.node for field in (node.input, node.output)):
        field[:] = [names.get(name, name) for name in field]
    for output in model.graph.output:
        output.name = names[output.name]
    append_scaling(model, head.scaling)
    model = _without_transposes(model)
    model.doc_string = "chestct. Research and education only. Not a medical device."
    onnx.checker.check_model(model, full_check=True)
    return model


def _without_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that computes the same without what the conversion left over, by ONNX Runtime's optimiser.

    Keras has the channels last, and ONNX has them first. So the converter transposes each map that more than the next
    convolution reads, and back. OpenVINO keeps these transposes, which take a tenth of the time. Batch norms become
    part of their convolutions.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators alone
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, GRAPH)
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(path)
    domains = [each for each in optimised.opset_import if each.domain == ""]
    del optimised.opset_import[:]
    optimised.opset_import.extend(domains)
    return optimised


def _with_one_channel(network: keras.Model) -> keras.Model:
    """Return a copy that convolves the grey channel itself, not three equal channels, and gives the same logits.

    Convolution is linear, so the kernel of the first one can be summed over its input channels.
    """

    def call(layer: keras.layers.Layer, inputs: Any, **options: Any) -> Any:
        return inputs[0] if layer.name == CHANNELS else layer(inputs, **options)

    copy = keras.models.clone_model(network, call_function=call)
    kernel, *others = network.get_weights()
    copy.set_weights([kernel.sum(axis=2, keepdims=True), *others])
    return copy
