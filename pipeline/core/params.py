"""params.yaml as immutable, checked values. params.yaml explains each key."""

import reprlib
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from chestct.arithmetic import Arithmetic
from chestct.card import InputRules
from chestct.document import Frozen
from pipeline.core import paths
from pipeline.core.errors import ParamsError
from pipeline.images.classes import ANY_CANCER, CLASSES, Classes, use_classes

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MOST: Final = 1_000_000
"""Largest count. A larger one is a typing error, and some library would fail on it without naming the key."""
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Resamples = Annotated[int, Field(ge=10, le=MOST)]
Folds = Annotated[int, Field(ge=2, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("the first end should be less than the second")
    return ends


class PhantomCounts(Frozen):
    train: Count
    valid: Count
    test: Count


class ExtraSource(Frozen):
    path: Path
    labels: Annotated[dict[str, str], Field(min_length=1)]
    """The label of each folder below `path`: a class or `any_cancer`."""


class Data(Frozen):
    source: Literal["kaggle", "local", "synthetic"]
    path: Path | None
    max_left_out: Share
    extra: tuple[ExtraSource, ...]
    phantoms: PhantomCounts


class Prepare(Frozen):
    image_size: Annotated[int, Field(ge=32, le=1024)]
    folds: Folds
    scan_correlation: Fraction
    duplicate_correlation: Fraction
    least_lung: BelowOne

    @field_validator("duplicate_correlation")
    @classmethod
    def _keep_duplicates_in_one_scan(cls, value: float, others: ValidationInfo) -> float:
        if value < others.data.get("scan_correlation", 0):
            raise ValueError("below prepare.scan_correlation, so that duplicates reach several folds")
        return value


class BaseModel(Frozen):
    backbone: Literal["vgg16", "resnet50v2", "mobilenet_v2", "efficientnetv2_b0", "efficientnet_lite0", "small"]
    weights: Annotated[str, Field(pattern=r"^(imagenet|none|.+@sha256:[0-9a-f]{64})$")]
    """The digest makes the content of a weights file a parameter."""
    dropout: BelowOne


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class Augment(Frozen):
    flip: bool
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    stretch: Annotated[float, Field(ge=1)]
    crops: Share
    least_field: Fraction
    windows: Share
    window_centre: Range
    window_width: Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
    clutter: Share
    degrade: Share


class Train(Frozen):
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_epochs: CountOrZero
    weight_decay: NotNegative
    gradient_clip: Positive
    averaging: BelowOne
    frozen_layers: Share
    frozen_depthwise: bool
    mixed_precision: bool
    label_smoothing: BelowOne
    head_epochs: CountOrZero
    head_learning_rate: Positive
    balance: Literal["weights", "oversample", "none"]
    augment: Augment


class Trust(Frozen):
    chest_ct: tuple[Path, ...]
    not_chest_ct: tuple[Path, ...]
    rotation_degrees: Positive
    scale: Fraction
    jpeg_quality: Annotated[int, Field(ge=1, le=95)]
    brightness: Fraction


class Costs(Frozen):
    refer: Positive
    wrong_cancer: Positive
    false_alarm: Positive
    missed_cancer: Positive


class Evaluate(Frozen):
    ood_score: Literal["mahalanobis", "neighbours"]
    ood_false_rejection: Fraction
    chest_ct_false_rejection: Fraction
    conformal_coverage: Fraction
    cancer_sensitivity: Fraction
    refer_risk: Fraction
    costs: Costs
    input_rules: InputRules
    bootstrap: Resamples


class Export(Frozen):
    weights: Literal["float16", "float32"]
    arithmetic: Arithmetic
    close_call: Share
    close_limit: Share
    logit_tolerance: Positive
    probability_tolerance: Positive
    unrounded: Share
    calibration_images: Count
    draws: Count
    max_accuracy_fall: Share
    max_loss_rise: Positive
    min_agreement: Share
    min_same_decision: Share
    bootstrap: Resamples


class Report(Frozen):
    bootstrap: Resamples


class Store(Frozen):
    max_megabytes: Positive
    min_cancer_auc: Share
    max_calibration_error: Share
    min_style_kept: Share
    max_style_accepted_otherwise: Share


class Bar(Frozen):
    """For each figure, what it must reach, and what the worse end of its interval must reach."""

    labelled: tuple[Share, Share]
    accepted_accuracy: tuple[Share, Share]
    missed_cancers: tuple[Share, Share]
    false_alarms: tuple[Share, Share]


class Site(Frozen):
    bar: Bar
    min_patients: Count
    bootstrap: Resamples


class Sweep(Frozen):
    trials: Count
    folds: Folds
    uniform: dict[str, Annotated[tuple[float, float], AfterValidator(_ascending)]]
    log_uniform: dict[str, Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]]
    choices: dict[str, Annotated[tuple[bool | int | float | str, ...], Field(min_length=2)]]

    @property
    def values(self) -> dict[str, tuple[object, ...]]:
        """Both ends of each range, and all choices, by key."""
        return {**self.uniform, **self.log_uniform, **self.choices}


class Params(Frozen):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    classes: Classes
    data: Data
    prepare: Prepare
    base_model: BaseModel
    train: Train
    trust: Trust
    evaluate: Evaluate
    export: Export
    report: Report
    store: Store
    site: Site
    sweep: Sweep

    @field_validator("data")
    @classmethod
    def _use_known_labels(cls, data: Data, others: ValidationInfo) -> Data:
        if "classes" not in others.data:
            return data  # they are wrong, and another message says so
        names = others.data["classes"].names
        wrong = sorted({label for source in data.extra for label in source.labels.values()} - {*names, ANY_CANCER})
        if wrong:
            raise ValueError(f"extra has the label {', '.join(wrong)}; expected {', '.join(names)} or {ANY_CANCER}")
        if data.source == "synthetic" and not set(names) <= set(CLASSES):
            raise ValueError(f"synthetic draws only the classes {', '.join(CLASSES)}")
        return data

    @classmethod
    def read(cls, path: Path = paths.PARAMS) -> Self:
        """Read and check params.yaml, and use its classes from then on.

        Raises ParamsError, which names every unknown, missing or wrong key.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ParamsError(f"{path}: cannot be read ({error.strerror}); run this in the project's root") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # the parser raises the last two at its limits
            raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ParamsError(f"{path}: expected the sections {', '.join(cls.model_fields)}")
        try:
            params = cls._checked(content)
            params._check_sweep()
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from error
        use_classes(params.classes)
        return params

    def get(self, key: str) -> Any:
        """Return the value of `section.key`."""
        return reduce(getattr, key.split("."), self)

    def changed(self, values: Mapping[str, object]) -> Self:
        """Return a copy with the values of each `section.key` in `values`. Raises ParamsError as `read` does."""
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
            raise ParamsError("; ".join(map(_in_words, error.errors()))) from error

    def _check_sweep(self) -> None:
        """Check that the stages accept every value that a sweep may try."""
        sweep = self.sweep
        keys = [*sweep.uniform, *sweep.log_uniform, *sweep.choices]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ParamsError(f"sweep: {', '.join(twice)} is named twice")
        for key, values in sweep.values.items():
            if not (key.startswith("train.") or key == "base_model.dropout"):
                raise ParamsError(f"sweep: {key} is neither of train nor base_model.dropout")
            for value in values:
                try:
                    self.changed({key: value})
                except ParamsError as error:
                    raise ParamsError(f"sweep: {error}") from error


def _in_words(error: "ErrorDetails") -> str:
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            return f"{key} is unknown"
        case "missing":
            return f"{key} is missing"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {reprlib.repr(error['input'])}"
