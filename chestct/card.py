"""The model card: everything about a model that is not in its graph, as one checked JSON document beside it.

The service holds no constant about the model and no class list of its own; it reads them here.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DISCLAIMER: Final = "Research and education only. Not a medical device."

Probability = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Base of the documents that cross a boundary: immutable, unknown fields forbidden, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSpec(Frozen):
    """The graph's input `pixels`: uint8 [N, height, width, channels], grey levels 0..255."""

    height: Annotated[int, Field(ge=32, le=1024)]
    width: Annotated[int, Field(ge=32, le=1024)]
    channels: Literal[1] = 1


class Thresholds(Frozen):
    """Numbers fitted on pooled out-of-fold predictions; what each does to an answer is in chestct.prediction."""

    ood_limit: float
    """`ood_score` above it: not a chest CT, the answer is `reject`."""
    refer_margin: Probability
    """The two highest probabilities closer than this: `refer`."""
    any_cancer: Probability
    """Label normal although the cancers' probabilities sum to this or more: `refer`."""
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
    loss: Estimate
    """Cross-entropy in nats of the calibrated probabilities."""
    accuracy: Estimate
    macro_f1: Estimate
    roc_auc: Estimate
    """One class against the rest, mean over the classes."""
    calibration_error: Estimate
    """Expected calibration error of the confidence."""
    classes: dict[str, ClassMetrics]
    confusion: tuple[tuple[int, ...], ...]
    """Rows: true class, columns: most probable class, both in the card's order of classes."""
    reliability: tuple[ReliabilityBin, ...]
    risk_coverage: tuple[RiskPoint, ...]
    rejected: Probability
    """Share of these images that the OOD limit would reject."""
    referred: Probability
    """Share of these images that are answered `refer`."""


class Lineage(Frozen):
    """Where the model comes from."""

    run_id: str
    """MLflow run."""
    git_commit: str
    data_source: Literal["kaggle", "local", "synthetic"]
    data_digest: str
    """SHA-256 over the sorted (path, SHA-256) of every data file."""
    backbone: str
    weights: str
    """What the backbone started from, such as `imagenet`."""
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
    temperature: Annotated[float, Field(gt=0)]
    """Already inside the graph: its probabilities are softmax(logits / temperature)."""
    logit_bias: tuple[float, ...]
    """The head's bias: the spatial mean of a class's heat map plus its bias is the class's logit."""
    thresholds: Thresholds
    metrics: dict[str, Metrics]
    """By split: `out_of_fold`, `test`, `test_without_twins`."""
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
        if len(self.logit_bias) != len(self.classes):
            raise ValueError(f"logit_bias: expected {len(self.classes)} numbers, got {len(self.logit_bias)}")
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
