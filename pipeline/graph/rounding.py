"""int8: a graph's convolutions quantised after training; and what rounding costs on images the network never saw.

Each kernel becomes int8 with a scale a channel, each convolution's input uint8 with its range on training images. In
the file, pairs of QuantizeLinear and DequantizeLinear say so; OpenVINO and ONNX Runtime both make int8 convolutions of
them. All else stays float32: additions, and from the last convolution's output on head, calibration and OOD score.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.core.errors import StageError
from pipeline.core.params import Export
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import Evaluation

COMPARED: Final = ("accuracy", "macro_f1", "calibration_error", "rejected", "referred")
"""The figures of pipeline.judging.metrics that are given for both graphs."""


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._left: Iterator[NDArray[np.uint8]] = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._left, None)
        return None if image is None else {"pixels": image[np.newaxis]}


def quantise(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> onnx.ModelProto:
    """A copy of the float32 graph with int8 convolutions; `pixels` uint8 [N, S, S, 1] set the ranges."""
    with TemporaryDirectory() as folder:
        exact, folded, quantised = (Path(folder, name) for name in ("exact.onnx", "folded.onnx", "quantised.onnx"))
        onnx.save(model, exact)
        quant_pre_process(exact, folded, skip_symbolic_shape=True)  # batch norms become part of their convolution
        quantize_static(
            folded,
            quantised,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                # Before an activation cuts them off, outputs reach far beyond what the next convolution sees.
                "OpTypesToExcludeOutputQuantization": ["Conv"],
                "QuantizeBias": False,
            },
        )
        result = onnx.load(quantised)
    onnx.checker.check_model(result, full_check=True)
    return result


def spread(pixels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """`count` of the images, or all where there are fewer, evenly from first to last."""
    chosen = np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)
    return np.take(pixels, chosen, axis=0)


def compare(exact: Answers, served: Answers, labels: NDArray[np.int64]) -> dict[str, float]:
    """Figures of the exact graph and of what is served, on N images that neither training nor ranges have seen.

    Each of COMPARED as `float32_…` and `served_…`; `accuracy_fall`; `agreement`, the share of equal labels; and
    `same_decision`, the share that is accepted, referred or rejected by both.
    """
    figures: dict[str, float] = {}
    for name, answers in (("float32", exact), ("served", served)):
        evaluation = Evaluation(answers, labels, resamples=1, seed=0)  # the intervals are not looked at
        figures |= {f"{name}_{figure}": evaluation.figures[figure].value for figure in COMPARED}
    same = (exact.accepted == served.accepted) & (exact.rejected == served.rejected)
    figures["accuracy_fall"] = figures["float32_accuracy"] - figures["served_accuracy"]
    figures["agreement"] = agreement(exact.probabilities, served.probabilities)
    figures["same_decision"] = float(same.mean())
    return figures


def agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Share of the rows of [N, classes] whose most probable class is the same."""
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def check(figures: dict[str, float], wanted: Export) -> None:
    """Raises StageError (exit code 3) where what is served costs more than `wanted` allows."""
    fall, agree = figures["accuracy_fall"], min(figures["agreement"], figures["released_agreement"])
    if not (fall <= wanted.max_accuracy_fall and agree >= wanted.min_agreement):
        instead = "export.weights to float16" if wanted.weights == "int8" else "export.arithmetic to float32"
        raise StageError(
            f"{wanted.weights} weights and {wanted.arithmetic} arithmetic take out-of-fold accuracy from "
            f"{figures['float32_accuracy']:.4f} to {figures['served_accuracy']:.4f} (may fall by "
            f"{wanted.max_accuracy_fall}) and keep {figures['agreement']:.4f} of the labels there, "
            f"{figures['released_agreement']:.4f} in the released network (at least {wanted.min_agreement}); "
            f"set {instead}",
            3,
        )
