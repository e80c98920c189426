"""The model card: all facts about a model that are not in its graph, as one validated JSON document beside it.

The service has no class list and no constants of the model. It reads them from the card.
"""

from typing import Annotated, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from chestct.arithmetic import ARITHMETICS, Arithmetic, CloseCalls, Int8, Rounding
from chestct.document import Frozen, JsonFile

DISCLAIMER: Final = "Research and education only. Not a medical device."

Probability = Annotated[float, Field(ge=0, le=1)]

LAYOUT: Final = 8
"""Rows and columns of the coarse picture that shows if a slice is inverted (InputLimits.average_layout)."""


class InputSpec(Frozen):
    """Input `pixels` of the graph: uint8 [N, height, width, channels], grey levels 0 to 255."""

    height: Annotated[int, Field(ge=32, le=1024)]
    width: Annotated[int, Field(ge=32, le=1024)]
    channels: Literal[1] = 1


class Scaling(Frozen):
    """Calibration of the logits, which the graph applies: softmax(scale * logits + shift), class by class."""

    method: Literal["temperature", "normal_apart"]
    """`temperature`: one scale for all classes and no shift. `normal_apart`: one scale for the cancers, and another
    scale and a shift for normal."""
    scale: tuple[Annotated[float, Field(gt=0)], ...]
    shift: tuple[float, ...]

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.floating]:
        """Calibrated logits [N, classes], whose softmax is the probabilities."""
        return logits * np.asarray(self.scale, logits.dtype) + np.asarray(self.shift, logits.dtype)


class InputRules(Frozen):
    """Limits of the rules on the original picture, set in params.yaml and checked on train + valid."""

    min_side: Annotated[int, Field(ge=1)]
    """Pixels."""
    max_aspect: Annotated[float, Field(ge=1)]
    """Longer side by shorter side."""
    max_colour: Annotated[float, Field(ge=0, le=255)]
    """Mean difference of the strongest and the weakest of red, green and blue, in levels of 255."""
    min_contrast: Annotated[float, Field(ge=0, le=255)]
    """Standard deviation of the grey levels."""
    max_frame: Probability
    """Share of the outer eighth on each side that has one grey level other than black."""
    max_negative_likeness: Annotated[float, Field(ge=0, le=2)]
    """Correlation of the negative's coarse picture with the average one, less that of the picture itself."""


class InputLimits(InputRules):
    average_layout: Annotated[tuple[float, ...], Field(min_length=LAYOUT**2, max_length=LAYOUT**2)]
    """Mean of the coarse pictures of train + valid, each scaled to mean 0 and standard deviation 1; row by row."""


class Thresholds(Frozen):
    """Thresholds fitted on the pooled out-of-fold predictions and applied by chestct.prediction.

    They do not change the label, which is always the most probable class.
    """

    ood_limit: float
    """An `ood_score` above it is unlike the training images: `refer` as `unfamiliar`, without a label."""
    chest_ct_limit: Probability
    """A `chest_ct` below it means no chest CT slice: `reject` as `not_chest_ct`."""
    refer_margin: Probability
    """If the two highest probabilities are closer than this: `refer`."""
    any_cancer: Probability
    """If the label is normal but the cancers' probabilities sum to this or more: `refer`."""
    least_confidence: tuple[Probability, ...]
    """For each class, in the card's order: if the label is less probable than this: `refer`."""
    conformal_quantile: Probability
    """The prediction set holds each class whose probability is at least 1 minus this. It is calibrated out of fold,
    without a guarantee."""
    conformal_coverage: Probability
    """Share of the out-of-fold chest-CT slices whose prediction set should hold the true class."""


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
    """The answers with a confidence in one bin: mean confidence, share that is right, and number."""

    confidence: Probability
    accuracy: Probability
    images: int


class RiskPoint(Frozen):
    """The `risk` (share of errors) if only the `coverage` share of images with the widest margin is answered."""

    coverage: Probability
    risk: Probability


class Metrics(Frozen):
    """Figures of the model on one split, with the curves that the web page draws."""

    split: str
    """Description, such as `out-of-fold on train + valid, 3 folds by scan`."""
    images: int
    scans: int
    """Scans that the images are of, as far as known. The intervals resample whole scans."""
    loss: Estimate
    """Cross-entropy in nats of the calibrated probabilities."""
    accuracy: Estimate
    macro_f1: Estimate
    roc_auc: Estimate
    """Mean over the classes of one class against the rest."""
    cancer_auc: Estimate
    """Area under the ROC curve of the cancers' summed probability, any cancer against normal."""
    brier: Estimate
    """Mean squared distance of the probabilities from the truth, summed over the classes: 0 to 2."""
    calibration_error: Estimate
    """Expected calibration error of the confidence, in ten bins of equal size."""
    calibration_error_if_perfect: Estimate
    """That error by chance alone if every confidence were right: median and middle 95 %."""
    error_at_80_coverage: Estimate
    """Share of errors among the 80 % of images with the widest margin."""
    cancer_sensitivity: Estimate
    """Share of the cancers with a cancer's label or the reason `possible_cancer`."""
    cancer_specificity: Estimate
    """Share of the normal images with neither."""
    set_coverage: Estimate
    """Share of prediction sets that hold the true class."""
    set_size: Estimate
    """Mean number of classes in a prediction set."""
    classes: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: true class, columns: most probable class, both in the card's order of classes."""
    reliability: tuple[ReliabilityBin, ...]
    risk_coverage: tuple[RiskPoint, ...]
    rejected: Probability
    """Share of the images with the decision `reject`."""
    referred: Probability
    """Share of the images with the decision `refer`."""
    unfamiliar: Probability
    """Share of the images referred as `unfamiliar`, without a label."""


class Fold(Frozen):
    """Figures of one fold's images, by the network that was not trained on them."""

    images: int
    accuracy: Probability
    macro_f1: Probability


class OtherPictures(Frozen):
    """Answers to one kind of pictures that are not chest CT, or are chest CT shown wrongly."""

    images: int
    rejected_by: dict[str, Probability]
    """Share that `chest_ct` alone, by a probe that was fitted without this kind, and that the rules on the input alone
    reject."""
    rejected: Probability
    """Share with the decision `reject`."""
    unfamiliar: Probability
    """Share that is not rejected, but `unfamiliar`."""


class ProbeSource(Frozen):
    """A folder whose pictures the probe "is it a chest CT" was fitted on, beside the data set."""

    name: str
    chest_ct: bool
    """Whether they are chest CT slices."""
    images: int
    digest: str
    """SHA-256 over the sorted SHA-256 of its files."""


class ScoreCounts(Frozen):
    """Histogram of an OOD score. The first and the last bin hold all scores beyond the `edges`."""

    kind: str
    """Name of the score, such as `mahalanobis`."""
    edges: tuple[float, ...]
    """Ascending in equal steps. `thresholds.ood_limit` is one of them."""
    counts: dict[str, tuple[int, ...]]
    """Images in each bin, upper edge included: of `chest_ct`, out-of-fold, and of each kind in the card's `others`."""


class FactReference(Frozen):
    """One watched fact (chestct.watched) of train + valid."""

    edges: tuple[float, ...]
    """Upper edges of all bins but the last, ascending."""
    shares: tuple[Probability, ...]
    """Share of the images in each bin."""
    clumping: Probability
    """How much likelier two images of one scan share a bin than two of different scans: 0 not at all, 1 always."""


class Reference(Frozen):
    """The watched facts of train + valid, each image answered by a network that was not trained on it."""

    images: int
    same_scan: Probability
    """Probability that two of the images are of one scan."""
    facts: dict[str, FactReference]
    """By the fact's name."""


class Adaptation(Frozen):
    """Scaling, thresholds and OOD limit refitted on a site's slices. The weights are those of the base."""

    base: str
    """Tag of the model that was adapted."""
    slices: int
    """Slices that the numbers were fitted on."""
    patients: int
    """Patients of these slices."""
    data_digest: str
    """SHA-256 over the sorted (path, SHA-256) of the site's files, which include those held out."""
    created: str
    """ISO 8601, UTC."""


class Lineage(Frozen):
    """Origin of the model."""

    run_id: str
    """Id of the MLflow run."""
    git_commit: str
    """Commit that the graph was exported from."""
    trained_commit: str = "unknown"
    """Commit that the training ran on; `unknown` in older cards."""
    data_source: Literal["kaggle", "local", "synthetic"]
    data_digest: str
    """SHA-256 over the sorted (path, SHA-256) of every data file."""
    backbone: str
    weights: str
    """Initial weights of the backbone: `imagenet`, `none`, or a file as `PATH@sha256:DIGEST`."""
    image_count: int
    """Distinct training images."""
    model_sha256: str
    """SHA-256 of the ONNX file."""
    created: str
    """ISO 8601, UTC."""
    adapted: Adaptation | None = None
    """None unless the numbers were refitted on a site's slices."""


class ModelCard(JsonFile):
    """The content of `card.json`, which is stored beside `model.onnx`."""

    name: Literal["chestct"] = "chestct"
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Class names in the order of the graph's outputs."""
    normal: str
    """The class that is no cancer."""
    titles: dict[str, str]
    """Title of each class for people."""
    input: InputSpec
    scaling: Scaling
    logit_bias: tuple[float, ...]
    """Bias of the head. The spatial mean of a class's heat map plus its bias is the class's unscaled logit."""
    thresholds: Thresholds
    input_limits: InputLimits
    metrics: dict[str, Metrics]
    """By split: `out_of_fold`, `test`, `test_new_scans`."""
    folds: tuple[Fold, ...] = ()
    """The parts of `out_of_fold`; empty in older cards."""
    baselines: dict[str, dict[str, Estimate]]
    """Out-of-fold accuracy and macro F1 of baselines, which answer without this network."""
    checks: dict[str, Estimate]
    """Out-of-fold results of checks: how often small changes flip the label, and tests of the heat maps."""
    styles: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    """Out-of-fold shares of the slices by the style that they are shown in: `kept` (the most probable class stays),
    `kept_normal_or_cancer` (it stays normal, or any cancer), `kept_or_unfamiliar`, `accepted_otherwise` (accepted with
    another label), `unfamiliar`, `rejected`."""
    others: dict[str, OtherPictures]
    """By the kind of picture."""
    probe_sources: tuple[ProbeSource, ...] = ()
    """Folders that the probe `chest_ct` was fitted on, beside the data set and `others`."""
    ood_scores: ScoreCounts | None = None
    """None in older cards."""
    reference: Reference | None = None
    """What `make drift` and the alerts compare with; None in older cards."""
    int8: Int8 | None = None
    """Cost of int8. If it is None, the engine does not use it."""
    bfloat16: Rounding | None = None
    """Cost of bfloat16. If it is None, the engine does not use it."""
    close_call: Probability = 0
    """An image is computed again in float32 if its two most probable classes are closer, or closer than the refer
    margin. So rounding does not decide the label."""
    close_limit: Probability = 0
    """The same if the highest probability is closer to `least_confidence`. So rounding does not decide to accept."""
    caveats: tuple[str, ...]
    """Facts about the data that a reader of the metrics must know."""
    licence: str
    lineage: Lineage
    disclaimer: str = DISCLAIMER

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
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
    def close_calls(self) -> CloseCalls:
        """The images that are computed again in float32."""
        least = max(self.close_call, self.thresholds.refer_margin)
        return CloseCalls(least, self.close_limit, self.thresholds.least_confidence)

    def allowed(self, fastest: Arithmetic) -> tuple[Arithmetic, ...]:
        """The arithmetics in which this model may be computed: `fastest` and slower ones, the fastest first."""
        costs = {"int8": self.int8, "bfloat16": self.bfloat16}
        return tuple(each for each in ARITHMETICS[ARITHMETICS.index(fastest) :] if costs.get(each) or each == "float32")

    @property
    def synthetic(self) -> bool:
        """Whether the model was trained on drawn phantoms instead of CT slices."""
        return self.lineage.data_source == "synthetic"
