"""A model small enough to build in a test, with the contract's inputs and outputs and answers one can foretell.

Its pictures are drawn as standard pictures, so decoding does not change them: a body with walls of soft tissue around a
lung. The lung is cut into horizontal bands, one a class. The class whose band is solid wins; `tiny_picture` draws it.
Two solid bands (np.maximum of two pictures) are a close call, a body without a lung (`unfamiliar_picture`) is
unfamiliar, and a body so narrow that it leaves the sides of the picture empty (`narrow_picture`) is no chest CT.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chestct.card import (
    LAYOUT,
    ClassMetrics,
    Estimate,
    InputLimits,
    InputSpec,
    Lineage,
    Metrics,
    ModelCard,
    OtherPictures,
    ReliabilityBin,
    RiskPoint,
    Scaling,
    Thresholds,
)
from chestct.image import Facts
from chestct.standard_picture import AIR, TISSUE
from chestct.store import CARD, GRAPH
from pipeline.graph.scaling import append_scaling
from pipeline.images.classes import CLASSES, TITLES

GAIN = 12.0
"""Logit of a class = GAIN * mean of its band, with grey levels scaled to 0..1."""
OOD_LIMIT = 0.55
"""`ood_score` is the mean grey level, scaled to 0..1."""
CHEST_CT_LIMIT = 0.3
"""`chest_ct` is the mean grey level of the columns of the body's left wall, scaled to 0..1."""


def tiny_picture(label: int, size: int = 32, classes: int = 4, marks: int = 0) -> NDArray[np.uint8]:
    """Return a picture with a solid band for the class `label`, uint8 [size, size, 1]. `size`: a multiple of 32.

    `marks` more pixels are solid in the band of the next class, up to 100 at the size 32. So answers can differ.
    """
    picture = _body(size)
    edge = size // 32 + size // 16
    lung = picture[edge:-edge, edge:-edge]
    lung[:] = AIR
    picture[_band(label, size, classes), edge:-edge] = TISSUE
    other = picture[_band((label + 1) % classes, size, classes), edge:-edge]
    rows, columns = np.nonzero(other == AIR)
    other[rows[:marks], columns[:marks]] = TISSUE
    return picture[:, :, np.newaxis]


def unfamiliar_picture(size: int = 32) -> NDArray[np.uint8]:
    """Return a body without a lung, uint8 [size, size, 1]."""
    return _body(size)[:, :, np.newaxis]


def narrow_picture(size: int = 32) -> NDArray[np.uint8]:
    """Return a body a quarter as wide as the picture, uint8 [size, size, 1]."""
    picture = _body(size)
    picture[:, : 3 * size // 8] = picture[:, 5 * size // 8 :] = AIR
    return picture[:, :, np.newaxis]


def tiny_scores(pixels: NDArray[np.uint8], classes: int = 4) -> tuple[NDArray[np.float32], float, float]:
    """Return the tiny model's probabilities [classes], `ood_score` and `chest_ct` of one image [size, size, 1]."""
    levels = pixels[:, :, 0].astype(np.float32) / 255
    logits = GAIN * levels.reshape(classes, -1).mean(axis=1)
    exponents = np.exp(logits - logits.max())
    size = len(levels)
    wall = levels[:, size // 32 : size // 32 + size // 16]
    return exponents / exponents.sum(), float(levels.mean()), float(wall.mean())


def _body(size: int) -> NDArray[np.uint8]:
    """A solid body with the round corners of a standard picture."""
    picture = np.full((size, size), AIR, np.uint8)
    edge = size // 32
    picture[edge:-edge, edge:-edge] = TISSUE
    corners = np.ix_([edge, size - edge - 1], [edge, size - edge - 1])
    picture[corners] = AIR
    return picture


def _band(label: int, size: int, classes: int) -> slice:
    """The band's rows in the body."""
    edge, height = size // 32, size // classes
    return slice(max(edge, label * height), min(size - edge, (label + 1) * height))


def plain_facts(**changes: Any) -> Facts:
    """Return the input facts of a picture that no rule objects to."""
    facts = Facts(
        width=400,
        height=300,
        colour=0.0,
        contrast=60.0,
        frame=0.1,
        bodies=1,
        body=0.6,
        air=20.0,
        tissue=110.0,
        blockiness=1.0,
        layout=np.zeros((LAYOUT, LAYOUT)),
        negative=np.zeros((LAYOUT, LAYOUT)),
        negative_bodies=0,
    )
    return facts._replace(**changes)


def tiny_graph(path: Path, size: int = 32, classes: int = 4) -> Path:
    """Write the graph. `size` must be a multiple of 32 and of `classes`."""
    band = size // classes
    masks = np.zeros((1, classes, classes, classes), np.float32)
    for label in range(classes):
        masks[0, label, label] = GAIN * classes  # so that the mean over the map is GAIN * the mean over the band
    nodes = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["bands"], kernel_shape=[band, band], strides=[band, band]),
        helper.make_node("Mul", ["bands", "masks"], ["heatmaps"]),
        helper.make_node("ReduceMean", ["heatmaps"], ["logits"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["planes"], ["ood_score"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Slice", ["planes", "wall_from", "wall_to", "across"], ["wall"]),
        helper.make_node("ReduceMean", ["wall"], ["chest_ct"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", size, size, 1])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes]),
            helper.make_tensor_value_info("ood_score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("chest_ct", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["N", classes, classes, classes]),
        ],
        [
            numpy_helper.from_array(np.array(255, np.float32), "white"),
            numpy_helper.from_array(np.array([size // 32]), "wall_from"),
            numpy_helper.from_array(np.array([size // 32 + size // 16]), "wall_to"),
            numpy_helper.from_array(np.array([3]), "across"),
            numpy_helper.from_array(masks, "masks"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    append_scaling(model, Scaling(method="temperature", scale=(1.0,) * classes, shift=(0.0,) * classes))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def input_channels(model: onnx.ModelProto) -> int:
    """Return the number of input channels of the first convolution."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    return next(int(tensor.dims[1]) for tensor in model.graph.initializer if tensor.name == first.input[1])


def tiny_metrics(classes: Sequence[str] = CLASSES, value: float = 0.9) -> Metrics:
    """Return metrics of ten images per class, one of which was taken for the next class."""

    def estimate(number: float) -> Estimate:
        return Estimate(value=number, low=max(0.0, number - 0.05), high=min(1.0, number + 0.05))

    count = len(classes)
    confusion = 9 * np.eye(count, dtype=int) + np.roll(np.eye(count, dtype=int), 1, axis=1)
    return Metrics(
        split="out-of-fold on train + valid, 3 folds by scan",
        images=10 * count,
        scans=5 * count,
        loss=estimate(0.3),
        accuracy=estimate(value),
        macro_f1=estimate(value),
        roc_auc=estimate(0.98),
        cancer_auc=estimate(0.99),
        brier=estimate(0.15),
        calibration_error=estimate(0.03),
        calibration_error_if_perfect=estimate(0.02),
        error_at_80_coverage=estimate(0.04),
        cancer_sensitivity=estimate(0.98),
        cancer_specificity=estimate(0.8),
        set_coverage=estimate(0.91),
        set_size=Estimate(value=1.2, low=1.1, high=1.3),
        classes={
            name: ClassMetrics(precision=estimate(value), recall=estimate(value), f1=estimate(value), images=10)
            for name in classes
        },
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        reliability=(
            ReliabilityBin(confidence=0.6, accuracy=0.7, images=10),
            ReliabilityBin(confidence=0.95, accuracy=0.97, images=10 * count - 10),
        ),
        risk_coverage=(RiskPoint(coverage=0.5, risk=0.0), RiskPoint(coverage=1.0, risk=0.1)),
        rejected=0.01,
        referred=0.1,
        unfamiliar=0.02,
    )


def tiny_card(
    model_sha256: str = "0" * 64,
    *,
    size: int = 32,
    classes: Sequence[str] = CLASSES,
    data_source: Literal["kaggle", "local", "synthetic"] = "local",
    run_id: str = "5eed",
) -> ModelCard:
    """Return a card for `tiny_graph`. `classes` must contain `normal`."""
    return ModelCard(
        classes=tuple(classes),
        normal="normal",
        titles={name: TITLES.get(name, name) for name in classes},
        input=InputSpec(height=size, width=size),
        scaling=Scaling(method="temperature", scale=(1.0,) * len(classes), shift=(0.0,) * len(classes)),
        logit_bias=(0.0,) * len(classes),
        thresholds=Thresholds(
            ood_limit=OOD_LIMIT,
            chest_ct_limit=CHEST_CT_LIMIT,
            refer_margin=0.2,
            any_cancer=0.3,
            conformal_quantile=0.8,
            conformal_coverage=0.9,
            least_confidence=(0.0,) * len(classes),
        ),
        input_limits=InputLimits(
            min_side=16,
            max_aspect=4,
            max_colour=30,
            min_contrast=0,
            max_frame=1,
            max_negative_likeness=2,
            average_layout=(0.0,) * LAYOUT**2,
        ),
        metrics={"out_of_fold": tiny_metrics(classes)},
        baselines={"majority_class": {"accuracy": Estimate(value=0.25, low=0.2, high=0.3)}},
        checks={"flips": Estimate(value=0.02, low=0.01, high=0.03)},
        others={
            "noise": OtherPictures(images=10, rejected_by={"chest_ct": 1.0, "input": 0.0}, rejected=1.0, unfamiliar=0.0)
        },
        caveats=("Trained on nothing: this model compares the brightness of bands.",),
        licence="MIT",
        lineage=Lineage(
            run_id=run_id,
            git_commit="0" * 40,
            data_source=data_source,
            data_digest="ab" * 32,
            backbone="bands",
            weights="none",
            image_count=10 * len(classes),
            model_sha256=model_sha256,
            created="2026-01-01T00:00:00Z",
        ),
    )


def tiny_model(
    folder: Path,
    *,
    size: int = 32,
    classes: Sequence[str] = CLASSES,
    data_source: Literal["kaggle", "local", "synthetic"] = "local",
    run_id: str = "5eed",
) -> ModelCard:
    """Write model.onnx and card.json to `folder`, for `chestct.store.import_model`. Makes the folder if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = tiny_graph(folder / GRAPH, size, len(classes))
    digest = sha256(graph.read_bytes()).hexdigest()
    card = tiny_card(digest, size=size, classes=classes, data_source=data_source, run_id=run_id)
    card.write(folder / CARD)
    return card
