"""params.yaml as checked, immutable values: what the model is. Read once, at the edge of a stage."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from chestct.card import Frozen, InputRules
from pipeline.core import paths
from pipeline.core.errors import ParamsError

MOST: Final = 1_000_000
"""Of what is counted: more is a slip of the finger, and some library would fail on it without naming the key."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class PhantomCounts(Frozen):
    """Pictures of each class in each split of the synthetic source."""

    train: Count
    valid: Count
    test: Count


class Data(Frozen):
    source: Literal["kaggle", "local", "synthetic"]
    path: Path | None
    """The folder that holds train, valid and test; for the local source only."""
    max_left_out: Share
    """Share of the entries in split and class folders that ingest may leave behind, each named with its reason."""
    phantoms: PhantomCounts


class Prepare(Frozen):
    image_size: Annotated[int, Field(ge=32, le=1024)]
    """Height and width of the model's input, in pixels."""
    folds: Annotated[int, Field(ge=2, le=10)]
    cluster_correlation: Fraction
    """Images whose 64 x 64 thumbnails correlate by this or more never stand in different folds."""
    duplicate_correlation: Fraction
    """Images whose thumbnails correlate by this or more are duplicates."""

    @field_validator("duplicate_correlation")
    @classmethod
    def _keep_duplicates_in_one_cluster(cls, value: float, others: ValidationInfo) -> float:
        if value < others.data.get("cluster_correlation", 0):
            raise ValueError("below prepare.cluster_correlation, so that duplicates reach several folds")
        return value


class BaseModel(Frozen):
    backbone: Literal["vgg16", "resnet50v2", "mobilenet_v2", "efficientnetv2_b0", "efficientnet_lite0", "small"]
    weights: Annotated[str, Field(pattern=r"^(imagenet|none|.+@sha256:[0-9a-f]{64})$")]
    """`imagenet`, `none`, or a weights file as `PATH@sha256:DIGEST`: another file is another parameter."""
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Augment(Frozen):
    """Largest random change of a training picture; 0 (or false) leaves it out."""

    flip: bool
    """Left to right."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=0, lt=1)]
    shift: Annotated[float, Field(ge=0, lt=1)]
    """Share of the picture's side."""
    gamma: NotNegative
    """Of the logarithm of gamma."""
    contrast: Annotated[float, Field(ge=0, lt=1)]


class Train(Frozen):
    epochs: Count
    patience: Count
    """Epochs without a better validation loss before a fold stops."""
    batch_size: Count
    learning_rate: Positive
    warmup_epochs: Annotated[int, Field(ge=0, le=MOST)]
    weight_decay: NotNegative
    gradient_clip: Positive
    """Largest norm of a step's gradient; a longer one is scaled down to it."""
    frozen_layers: Share
    """Share of the backbone's layers, counted from the pixels, whose pretrained weights stay."""
    frozen_depthwise: bool
    """Whether pretrained depthwise kernels stay."""
    mixed_precision: bool
    """Whether fine-tuning computes in bfloat16 on float32 weights."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    head_epochs: Annotated[int, Field(ge=0, le=MOST)]
    """Epochs of the head alone on cached features, before fine-tuning."""
    head_learning_rate: Positive
    balance: Literal["weights", "oversample", "none"]
    augment: Augment


class Trust(Frozen):
    """Changes of a picture so small that the label should stay."""

    rotation_degrees: Positive
    scale: Fraction
    """Share by which the picture is enlarged."""
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]
    brightness: Fraction
    """Share by which each grey level is raised."""


class Costs(Frozen):
    """Of an answer; only their proportions matter. A right label costs nothing."""

    refer: Positive
    """A person has to look."""
    wrong_cancer: Positive
    """A cancer that stands as another one."""
    false_alarm: Positive
    """A normal slice that stands as a cancer."""
    missed_cancer: Positive
    """A cancer that stands as normal."""


class Evaluate(Frozen):
    ood_score: Literal["mahalanobis", "neighbours"]
    """Which of pipeline.judging.ood's scores serves."""
    ood_false_rejection: Fraction
    """Share of chest-CT slices that may be rejected as something else."""
    conformal_coverage: Fraction
    cancer_sensitivity: Fraction
    """Share of the cancers called normal that the any-cancer rule must catch, counted with those not called normal."""
    refer_risk: Fraction
    """Target share of errors among accepted answers."""
    costs: Costs
    input_rules: InputRules
    bootstrap: Annotated[int, Field(ge=10, le=MOST)]
    """Resamples of each 95 % interval."""


class Export(Frozen):
    weights: Literal["int8", "float16", "float32"]
    arithmetic: Literal["bfloat16", "float32"]
    """That the service computes in, where its CPU can."""
    logit_tolerance: Positive
    """Largest difference from Keras' logits on real inputs, before weights are rounded."""
    probability_tolerance: Positive
    """Largest change of a probability by rounding weights to float16."""
    calibration_images: Count
    """Training images whose activations set the ranges of int8."""
    max_accuracy_fall: Share
    """How much of its out-of-fold accuracy int8 or bfloat16 may cost."""
    min_agreement: Share
    """Share of held-out images that keep their label with int8 or bfloat16."""


class Report(Frozen):
    bootstrap: Annotated[int, Field(ge=10, le=MOST)]
    """Resamples of each 95 % interval."""


class Store(Frozen):
    """Of the runs that are small enough the best one is stored, unless it misses one of the out-of-fold figures."""

    max_megabytes: Positive
    """Size of the graph."""
    min_macro_f1: Share
    min_accuracy: Share
    max_calibration_error: Share
    max_flips: Share
    """Share of labels that small changes flip."""


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("the first end should be less than the second")
    return ends


class Sweep(Frozen):
    """What `make sweep` tries. Keys are those of `-S`: any of train, and base_model.dropout."""

    trials: Count
    folds: Annotated[int, Field(ge=2, le=10)]
    uniform: dict[str, Annotated[tuple[float, float], AfterValidator(_ascending)]]
    """Both ends of a range from which values are drawn evenly."""
    log_uniform: dict[str, Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]]
    """The same, evenly on a logarithmic scale."""
    choices: dict[str, Annotated[tuple[bool | int | float | str, ...], Field(min_length=2)]]

    @property
    def values(self) -> dict[str, tuple[object, ...]]:
        """Each key's ends or choices."""
        return {**self.uniform, **self.log_uniform, **self.choices}


class Params(Frozen):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    data: Data
    prepare: Prepare
    base_model: BaseModel
    train: Train
    trust: Trust
    evaluate: Evaluate
    export: Export
    report: Report
    store: Store
    sweep: Sweep

    @classmethod
    def read(cls, path: Path = paths.PARAMS) -> Self:
        """Read and check params.yaml. Raises ParamsError, which names every unknown, missing or wrong key."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ParamsError(f"{path}: cannot be read ({error.strerror}); run this in the project's root") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # the parser's own limits among them
            raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ParamsError(f"{path}: expected the sections {', '.join(cls.model_fields)}")
        try:
            params = cls._checked(content)
            params._check_sweep()
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from error
        return params

    def get(self, key: str) -> Any:
        """The value of `section.key`, or None where there is no such key."""
        value: Any = self
        for name in key.split("."):
            value = getattr(value, name, None)
        return value

    def changed(self, values: Mapping[str, object]) -> Self:
        """These parameters but for each `section.key` in `values`. Raises ParamsError as `read` does."""
        content = self.model_dump()
        for key, value in values.items():
            *sections, last = key.split(".")
            section = content
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        return self._checked(content)

    @classmethod
    def _checked(cls, content: object) -> Self:
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            wrong = "; ".join(_in_words(".".join(map(str, item["loc"])), item) for item in error.errors())
            raise ParamsError(wrong) from error

    def _check_sweep(self) -> None:
        """Every value that a sweep may try is one that a stage would take."""
        sweep = self.sweep
        if twice := (sweep.uniform.keys() & sweep.log_uniform) | (
            sweep.choices.keys() & {*sweep.uniform, *sweep.log_uniform}
        ):
            raise ParamsError(f"sweep: {', '.join(sorted(twice))} is named twice")
        for key, values in sweep.values.items():
            if not (key.startswith("train.") or key == "base_model.dropout"):
                raise ParamsError(f"sweep: {key} is neither of train nor base_model.dropout")
            for value in values:
                try:
                    self.changed({key: value})
                except ParamsError as error:
                    raise ParamsError(f"sweep: {error}") from error


def _in_words(key: str, item: object) -> str:
    assert isinstance(item, dict)
    match item["type"]:
        case "extra_forbidden":
            return f"{key} is unknown"
        case "missing":
            return f"{key} is missing"
        case _:
            return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}, got {reprlib.repr(item['input'])}"
