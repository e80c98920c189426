"""Refits a model's numbers on a site's slices: temperature, thresholds and OOD limit. The weights stay.

The limit of `chest_ct` and the rules on the input stay too, because a site's own slices can't say what is no chest CT.
"""

from collections.abc import Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from chestct.card import Adaptation, ModelCard, Scaling, Thresholds
from chestct.digests import sha256_of, write_sums
from chestct.engine import Engine
from chestct.prediction import decide
from chestct.store import CARD, GRAPH
from pipeline.core.errors import StageError
from pipeline.core.params import Evaluate
from pipeline.foreign.answering import NOT_CHEST_CT, REFUSED, UNREADABLE, Answered, Model, number_patients
from pipeline.foreign.folders import ANY_CANCER
from pipeline.graph.scaling import with_scaling
from pipeline.images.classes import class_count, class_names, normal_index, normal_name
from pipeline.judging.calibration import cross_entropy, fit_temperature
from pipeline.judging.thresholds import fit_thresholds

LEAST_TEMPERATURE: Final = 0.5
"""Few slices can be separated perfectly, which would make the model far too sure. So it gets twice as sure at most."""
TOLERANCE: Final = 1e-5
"""Largest difference of the new graph's probabilities from the new scaling of the base's logits."""


Floats = NDArray[np.floating]


class Numbers(NamedTuple):
    """What is refitted."""

    scaling: Scaling
    thresholds: Thresholds
    temperature: float
    """Of the base's calibrated logits; above 1 if the base is too sure of itself here."""


def split(answered: Sequence[Answered], seed: int) -> NDArray[np.bool_]:
    """Choose half of the patients to fit on, [N]. Of each label's patients, about half are chosen.

    A patient with slices of several labels counts for the first one, and all slices of a patient are on one side.
    """
    patients = number_patients(answered)
    labels = dict[int, str]()
    for patient, each in zip(patients.tolist(), answered, strict=True):
        labels.setdefault(patient, each.file.known)
    rng = np.random.default_rng(seed)
    chosen, seen = set[int](), 0
    for label in sorted(set(labels.values())):
        of_label = rng.permutation([patient for patient, known in labels.items() if known == label])
        seen += len(of_label)
        chosen |= set(of_label[: seen // 2 - len(chosen)].tolist())  # odd numbers do not all favour one side
    return np.isin(patients, sorted(chosen))


def what_is_missing(answered: Sequence[Answered], fitting: NDArray[np.bool_], least: int) -> str:
    """What each half needs to be fitted or held out, and what it has; empty if that is enough."""
    counts = []
    for half in (fitting, ~fitting):
        usable = [each for each, wanted in zip(answered, half, strict=True) if wanted and _usable(each)]
        patients = number_patients(usable)
        normal = np.array([each.file.known == normal_name() for each in usable], bool)
        counts.append([len(np.unique(patients[side])) for side in (~normal, normal)])
    (cancers, normals), (held_cancers, held_normals) = counts
    if min(cancers, normals, held_cancers, held_normals) >= least:
        return ""
    return (
        f"each half needs at least {least} patients with cancer and {least} without; here are {cancers} and "
        f"{held_cancers} with cancer, {normals} and {held_normals} without"
    )


def refit(answered: Sequence[Answered], card: ModelCard, wanted: Evaluate, least: int) -> Numbers:
    """Fit the numbers on a site's slices. Rejected ones and files that can't be read are left out.

    If a label is ANY_CANCER, the temperature is fitted on the summed probability of the cancers. A threshold about a
    class with fewer than `least` patients gets no looser than that of the base.
    """
    used = [each for each in answered if _usable(each)]
    logits = card.scaling.apply(np.stack([each.logits for each in used if each.logits is not None]).astype(np.float64))
    known = np.array([each.file.known for each in used])
    if ANY_CANCER in known:
        normal = known == normal_name()
        temperature = fit_temperature(
            logits, normal.astype(int), lambda scaled, truth: cross_entropy(_sides(scaled), truth)
        )
        best_cancer = np.where(np.arange(class_count()) == normal_index(), -np.inf, logits).argmax(axis=1)
        # Which cancer it is counts neither as right nor as wrong.
        labels = np.where(normal, normal_index(), best_cancer)
    else:
        labels = np.array([class_names().index(name) for name in known])
        temperature = fit_temperature(logits, labels)
    temperature = max(temperature, LEAST_TEMPERATURE)
    scaling = card.scaling.model_copy(
        update={name: tuple(n / temperature for n in getattr(card.scaling, name)) for name in ("scale", "shift")}
    )
    scores = np.array([each.prediction.ood_score for each in used if each.prediction])
    chest_ct = np.array([each.prediction.chest_ct for each in used if each.prediction])
    fitted = fit_thresholds(softmax(logits / temperature, axis=1), scores, chest_ct, labels, wanted)
    patients = number_patients(used)
    enough = {name for name in class_names() if len(np.unique(patients[known == name])) >= least}
    return Numbers(scaling, _restrain(fitted, card.thresholds, enough, len(used)), temperature)


def _restrain(fitted: Thresholds, base: Thresholds, enough: Set[str], slices: int) -> Thresholds:
    """The fitted thresholds where there are enough patients of a class, and otherwise the stricter of both."""
    kept: dict[str, object] = {"chest_ct_limit": base.chest_ct_limit}
    kept["least_confidence"] = tuple(
        new if name in enough else max(old, new)
        for name, old, new in zip(class_names(), base.least_confidence, fitted.least_confidence, strict=True)
    )
    if not enough >= set(class_names()):
        kept["refer_margin"] = max(base.refer_margin, fitted.refer_margin)
    if not enough >= set(class_names()) or (slices + 1) * fitted.conformal_coverage > slices:
        kept |= {name: getattr(base, name) for name in ("conformal_quantile", "conformal_coverage")}
    return fitted.model_copy(update=kept)


def answer_again(answered: Sequence[Answered], card: ModelCard, numbers: Numbers, tag: str) -> list[Answered]:
    """The answers that the model would give with these numbers."""
    new = card.model_copy(update={"scaling": numbers.scaling, "thresholds": numbers.thresholds})
    again = []
    for each in answered:
        if each.prediction is None or each.logits is None:
            again.append(each)
            continue
        probabilities = softmax(numbers.scaling.apply(each.logits.astype(np.float64))).astype(np.float32)
        prediction = decide(
            new,
            probabilities,
            each.prediction.ood_score,
            each.prediction.chest_ct,
            each.facts,
            request_id=each.prediction.request_id,
            model=tag,
        )
        again.append(each._replace(prediction=prediction))
    return again


def write_adapted(
    model: Model, numbers: Numbers, folder: Path, origin: Adaptation, caveat: str, pixels: NDArray[np.uint8]
) -> None:
    """Write the adapted graph, its card and their digests into `folder`.

    `pixels` uint8 [N, S, S, 1] check the graph. Raises StageError if it has no named constants, or if its probabilities
    are not the new scaling of the base's logits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(with_scaling(onnx.load(model.folder / GRAPH), numbers.scaling), folder / GRAPH)
    except ValueError as error:
        raise StageError(f"{model.tag} can't be adapted: {error}; export it again") from error
    base, scores = (Engine(path / GRAPH).infer(pixels) for path in (model.folder, folder))
    logits = base.heatmaps.mean(axis=(2, 3), dtype=np.float64) + np.asarray(model.card.logit_bias)
    difference = float(np.abs(softmax(numbers.scaling.apply(logits), axis=1) - scores.probabilities).max())
    if not difference <= TOLERANCE:
        raise StageError(
            f"the adapted graph's probabilities are off by {difference:.1e}, allowed is {TOLERANCE:.0e}", 3
        )
    lineage = model.card.lineage.model_copy(
        update={
            "adapted": origin,
            "model_sha256": sha256_of(folder / GRAPH),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    card = model.card.model_copy(
        update={
            "scaling": numbers.scaling,
            "thresholds": numbers.thresholds,
            "lineage": lineage,
            "caveats": (caveat, *model.card.caveats),
        }
    )
    ModelCard.model_validate(card.model_dump(mode="json")).write(folder / CARD)
    write_sums(folder, GRAPH, CARD)


def _usable(answered: Answered) -> bool:
    return answered.outcome not in (NOT_CHEST_CT, REFUSED, UNREADABLE)


def _sides(logits: Floats) -> Floats:
    """Logits of any cancer and of normal, [N, 2]."""
    cancers = np.delete(logits, normal_index(), axis=1)
    return np.stack([logsumexp(cancers, axis=1), logits[:, normal_index()]], axis=1)
