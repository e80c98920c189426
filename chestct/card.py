"""The model card: everything about a model that is not in its graph, as one checked JSON document beside it.

The service holds no constant about the model and no class list of its own; it reads them here.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

DISCLAIMER: Final = "Research and education only. Not a medical device."

Probability = Annotated[float, Field(ge=0, le=1)]

LAYOUT: Final = 8
"""Rows and columns of the coarse picture by which an inverted slice is told (InputLimits.average_layout)."""


class Frozen(BaseModel):
    """Base of the documents that cross a boundary: immutable, unknown fields forbidden, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSpec(Frozen):
    """The graph's input `pixels`: uint8 [N, height, width, channels], grey levels 0..255."""

    height: Annotated[int, Field(ge=32, le=1024)]
    width: Annotated[int, Field(ge=32, le=1024)]
    channels: Literal[1] = 1


class Scaling(Frozen):
    """How logits become probabilities, already inside the graph: softmax(scale * logits + shift), class by class."""

    method: Literal["temperature", "vector"]
    """`temperature`: one scale for all classes and no shift."""
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    shift: tuple[float, ...]

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """Calibrated logits [N, classes], whose softmax is the probabilities."""
        return logits * np.asarray(self.scale, logits.dtype) + np.asarray(self.shift, logits.dtype)


class InputRules(Frozen):
    """Numbers of the rules on the picture as it came, stated in params.yaml and checked on train + valid."""

    min_side: Annotated[int, Field(ge=1)]
    """Pixels."""
    max_aspect: Annotated[float, Field(ge=1)]
    """Longer side by shorter side."""
    max_colour: Annotated[float, Field(ge=0, le=255)]
    """Mean difference of the strongest and the weakest of red, green and blue, in levels of 255."""
    min_contrast: Annotated[float, Field(ge=0, le=255)]
    """Standard deviation of the grey levels."""
    max_frame: Probability
    """Share of the outer eighth on each side with one and the same grey level, black left out."""
    min_likeness: Annotated[float, Field(ge=-1, le=1)]
    """Correlation of the coarse picture with the average one; an inverted picture has the negative one."""


class InputLimits(InputRules):
    average_layout: Annotated[tuple[float, ...], Field(min_length=LAYOUT**2, max_length=LAYOUT**2)]
    """Mean over train + valid of the coarse pictures, each with mean 0 and standard deviation 1; row by row."""


class Thresholds(Frozen):
    """Numbers fitted on pooled out-of-fold predictions; what each does to an answer is in chestct.prediction.

    None changes the label, which is always the most probable class.
    """

    ood_limit: float
    """`ood_score` above it: not a chest CT, the answer is `reject`."""
    refer_margin: Probability
    """The two highest probabilities closer than this: `refer`."""
    any_cancer: Probability
    """Label normal although the cancers' probabilities sum to this or more: `refer`."""
    least_confidence: tuple[Probability, ...]
    """For each class, in the card's order: a label less probable than this: `refer`."""
    conformal_quantile: Probability
    """The prediction set holds each class whose probability is at least 1 minus this."""
    conformal_coverage: Probability
    """The share of chest-CT slices whose true class the prediction set is meant to hold."""


class Estimate(Frozen):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class ClassMetrics(Frozen):
    precision: Estimate
    recall: Estimate
    f1: Estimate
    images: int


class ReliabilityBin(Frozen):
    """The answers whose confidence fell into one bin: their mean confidence, the share that was right, their number."""

    confidence: Probability
    accuracy: Probability
    images: int


class RiskPoint(Frozen):
    """Answering only the `coverage` share of images with the widest margin leaves this `risk` (share of errors)."""

    coverage: Probability
    risk: Probability


class Metrics(Frozen):
    """How well the model did on one split, with the curves the web page draws."""

    split: str
    """In words, such as `out-of-fold on train + valid, 3 folds by visual cluster`."""
    images: int
    clusters: int | None = None
    """Of look-alikes, which intervals resample whole; None in cards from before it was recorded, whose intervals on the
    test folder resample single images."""
    loss: Estimate
    """Cross-entropy in nats of the calibrated probabilities."""
    accuracy: Estimate
    macro_f1: Estimate
    roc_auc: Estimate
    """One class against the rest, mean over the classes."""
    brier: Estimate
    """Mean squared distance of the probabilities from the truth, over all classes: 0 to 2."""
    calibration_error: Estimate
    """Expected calibration error of the confidence, in ten bins of equally many images."""
    calibration_error_if_perfect: Estimate
    """What that error would be by chance alone, were every confidence right: median and the middle 95 %."""
    error_at_80_coverage: Estimate
    """Share of errors among the 80 % of images with the widest margin."""
    cancer_sensitivity: Estimate
    """Share of the cancers that get a cancer's label or the reason `possible_cancer`."""
    cancer_specificity: Estimate
    """Share of the normal images that get neither."""
    set_coverage: Estimate
    """Share of prediction sets that hold the true class."""
    set_size: Estimate
    """Classes in a prediction set, on average."""
    classes: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: true class, columns: most probable class, both in the card's order of classes."""
    reliability: tuple[ReliabilityBin, ...]
    risk_coverage: tuple[RiskPoint, ...]
    rejected: Probability
    """Share of these images that are answered `reject`."""
    referred: Probability
    """Share of these images that are answered `refer`."""


class Fold(Frozen):
    """How well the network did that never saw these images."""

    images: int
    accuracy: Probability
    macro_f1: Probability


class OtherPictures(Frozen):
    """Rejections of one group of pictures that are not chest CT, or are chest CT shown wrongly."""

    images: int
    rejected_by: dict[str, Probability]
    """Share that each OOD score alone would reject, at its own limit."""
    rejected: Probability
    """Share answered `reject`, by the score that serves or by a rule on the input."""


class ScoreCounts(Frozen):
    """How many scores for being unlike the training images fell between two `edges`; the end bins hold all beyond."""

    kind: str
    """Which score, such as `mahalanobis`."""
    edges: tuple[float, ...]
    """Ascending, in equal steps; `thresholds.ood_limit` is one of them."""
    counts: dict[str, tuple[int, ...]]
    """Bin by bin, each with its upper edge: of `chest_ct`, out-of-fold, and of each kind in the card's `others`."""


class Rounding(Frozen):
    """What rounder arithmetic costs: both answer images that the networks of the folds have not seen."""

    agreement: Probability
    """Share of the images that keep their label."""
    same_decision: Probability
    """Share that is accepted, referred or rejected as before."""
    accuracy_fall: float
    """Out-of-fold accuracy in float32 less that in the rounder arithmetic."""


class Lineage(Frozen):
    """Where the model comes from."""

    run_id: str
    """MLflow run."""
    git_commit: str
    """That the graph was exported from."""
    trained_commit: str = "unknown"
    """That train was started from; `unknown` in cards from before it was recorded."""
    data_source: Literal["kaggle", "local", "synthetic"]
    data_digest: str
    """SHA-256 over the sorted (path, SHA-256) of every data file."""
    backbone: str
    weights: str
    """What the backbone started from: `imagenet`, `none`, or a file as `PATH@sha256:DIGEST`."""
    image_count: int
    """Distinct training images."""
    model_sha256: str
    """Of the ONNX file."""
    created: str
    """ISO 8601, UTC."""


class ModelCard(Frozen):
    """`card.json`, stored beside `model.onnx`."""

    name: Literal["chestct"] = "chestct"
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """In the order of the graph's outputs."""
    normal: str
    """The class that is no cancer."""
    titles: dict[str, str]
    """Each class in people's words."""
    input: InputSpec
    scaling: Scaling
    logit_bias: tuple[float, ...]
    """The head's bias: the spatial mean of a class's heat map plus its bias is the class's logit, unscaled."""
    thresholds: Thresholds
    input_limits: InputLimits
    metrics: dict[str, Metrics]
    """By split: `out_of_fold`, `test`, `test_without_twins`."""
    folds: tuple[Fold, ...] = ()
    """The parts of `out_of_fold`; empty in cards from before they were recorded."""
    baselines: dict[str, dict[str, Estimate]]
    """Accuracy and macro F1, out-of-fold, of ways to answer without this network."""
    checks: dict[str, Estimate]
    """How often small changes flip the label, and how the heat maps did in tests; out-of-fold."""
    others: dict[str, OtherPictures]
    """By the kind of picture."""
    ood_scores: ScoreCounts | None = None
    """None in cards from before it was recorded."""
    bfloat16: Rounding | None = None
    """What the engine may save by computing in bfloat16; None: it computes in float32."""
    caveats: tuple[str, ...]
    """What a reader of the metrics must know about the data."""
    licence: str
    lineage: Lineage
    disclaimer: str = DISCLAIMER

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.normal not in self.classes:
            raise ValueError(f"normal: expected one of {self.classes}, got {self.normal!r}")
        if set(self.titles) != set(self.classes):
            raise ValueError(f"titles: expected one for each of {self.classes}, got {sorted(self.titles)}")
        for name, numbers in (
            ("scaling.scale", self.scaling.scale),
            ("scaling.shift", self.scaling.shift),
            ("logit_bias", self.logit_bias),
            ("thresholds.least_confidence", self.thresholds.least_confidence),
        ):
            if len(numbers) != len(self.classes):
                raise ValueError(f"{name}: expected {len(self.classes)} numbers, got {len(numbers)}")
        return self

    @property
    def synthetic(self) -> bool:
        """Trained on drawn phantoms, not on CT."""
        return self.lineage.data_source == "synthetic"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a card; pydantic's ValidationError names what is wrong in it."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
