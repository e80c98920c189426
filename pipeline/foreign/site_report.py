"""Writes the acceptance report of a site: Markdown for people, JSON for programs, and pictures."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from chestct.card import DISCLAIMER, Estimate, Thresholds
from chestct.document import Frozen, JsonFile
from pipeline.foreign.answering import OUTCOMES, Answered
from pipeline.foreign.site_figures import MEANINGS, Mark, SiteFigures
from pipeline.images.classes import class_names, titles
from pipeline.judging.plots import in_words

DO_NOT_USE: Final = "Do not use this model here."
BLACK: Final = 4
"""Grey level up to which a lung has been clipped to black."""
REACHED: Final = "The figures reach the bar."


class GreyLevels(Frozen):
    """Grey levels of a label's slices, before they were brought to the standard picture."""

    label: str
    slices: int
    dicom: int
    """DICOM files. They have Hounsfield units, so their window is known."""
    black_lungs: int
    """Slices with lungs so dark that a window has clipped them."""
    air: tuple[float, float, float]
    """Of the lung, or of air if there is no lung: lower quartile, median, upper quartile."""
    tissue: tuple[float, float, float]
    bodies: dict[str, int]
    """Slices by the number of bodies found."""


class Refitted(Frozen):
    """What numbers that were fitted on one half of the patients change on the other half."""

    fitted_slices: int
    fitted_patients: int
    temperature: float
    """Of the base's calibrated logits."""
    base_thresholds: Thresholds
    thresholds: Thresholds
    before: SiteFigures
    """Of the half that was held out."""
    after: SiteFigures
    marks: tuple[Mark, ...]
    """The held-out half after the change, against the bar."""
    tag: str
    """Tag of the new model; empty if none was stored."""

    @property
    def usable(self) -> bool:
        """Whether the held-out half reaches the bar."""
        return all(mark.reached for mark in self.marks)


class SiteReport(JsonFile):
    model: str
    model_sha256: str
    digest: str
    """SHA-256 over the sorted (path, SHA-256) of the site's files."""
    created: str
    two_classes: bool
    """Whether only cancer and normal are known."""
    slices_alone: int
    """Slices of which no patient is named. Each counts as a patient."""
    problems: dict[str, int]
    """Files that can't be read, by reason."""
    reasons: dict[str, int]
    """Slices by the rule that rejected or referred them."""
    figures: SiteFigures
    macro_f1: Estimate | None
    """Of the slices with a label. None if only cancer and normal are known, or if no slice has a label."""
    marks: tuple[Mark, ...]
    grey_levels: tuple[GreyLevels, ...]
    missing: str
    """Why the numbers can't be refitted here; empty if they can."""
    refitted: Refitted | None
    disclaimer: str = DISCLAIMER

    @property
    def usable(self) -> bool:
        """Whether the served model reaches the bar."""
        return all(mark.reached for mark in self.marks)


def measure_grey_levels(answered: Sequence[Answered]) -> tuple[GreyLevels, ...]:
    """The grey levels of each label's slices that could be read."""
    found = []
    for label in sorted({each.file.known for each in answered}):
        some = [(each, each.facts) for each in answered if each.file.known == label and each.facts]
        if some:
            air, tissue = (
                np.percentile([getattr(facts, n) for _, facts in some], (25, 50, 75)) for n in ("air", "tissue")
            )
            found.append(
                GreyLevels(
                    label=label,
                    slices=len(some),
                    dicom=sum(each.dicom for each, _ in some),
                    black_lungs=sum(facts.air <= BLACK for _, facts in some),
                    air=tuple(air.tolist()),
                    tissue=tuple(tissue.tolist()),
                    bodies=dict(sorted(Counter(str(facts.bodies) for _, facts in some).items())),
                )
            )
    return tuple(found)


def to_markdown(report: SiteReport, pictures: Sequence[str]) -> str:
    """The report as a page. `pictures` are the names of the files beside it."""
    parts = [
        f"# Acceptance report of {report.model}",
        f"{DISCLAIMER} {_verdict(report.marks)}",
        *_what(report),
        "## The bar",
        *_bar(report.marks),
        "## Figures",
        *_figures(report),
        "## What became of the slices",
        *_outcomes(report, pictures),
        "## Grey levels",
        *_grey_levels(report.grey_levels),
        "## What refitted numbers would change",
        *_refitted(report),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(marks: Sequence[Mark]) -> str:
    if missed := _missed(marks):
        return f"**{DO_NOT_USE}** Not up to the bar: {missed}."
    return f"**{REACHED}** They hold for slices like these, from patients like these, and for nothing else."


def _missed(marks: Sequence[Mark]) -> str:
    return "; ".join(f"{MEANINGS[mark.name]} ({mark.verdict})" for mark in marks if not mark.reached)


def _what(report: SiteReport) -> list[str]:
    counts = {label: sum(counts.values()) for label, counts in report.figures.table.items()}
    sizes = ", ".join(f"{number} {titles().get(label, label).lower()}" for label, number in counts.items())
    lines = [
        f"{report.figures.slices} files of {report.figures.patients} patients: {sizes}. Digest of the files: "
        f"`{report.digest}`. Digest of the graph: `{report.model_sha256}`. Written {report.created}.",
    ]
    if report.slices_alone:
        lines.append(
            f"{report.slices_alone} slices name no patient. Each counts as one, so the intervals may be too narrow. "
            "Put each patient's slices into a folder to mend that."
        )
    if report.two_classes:
        lines.append(
            "Of some slices only cancer or normal is known, so any cancer's label counts as right for a cancer."
        )
    if report.problems:
        lines.append("Not readable: " + "; ".join(f"{number} files, {why}" for why, number in report.problems.items()))
    return lines


def _bar(marks: Sequence[Mark]) -> list[str]:
    rows = [
        (
            MEANINGS[mark.name],
            f"{mark.sign} {100 * mark.value:g} %, and {100 * mark.at_worst:g} % at the worse end",
            str(mark.found or "no such slices"),
            mark.verdict if mark.reached else f"**{mark.verdict}**",
        )
        for mark in marks
    ]
    return ["Section `site` of params.yaml states the bar.", _table(("figure", "wanted", "found", "verdict"), rows)]


def _figures(report: SiteReport) -> list[str]:
    rows = [(words, str(report.figures.shares[name] or "no such slices")) for name, words in MEANINGS.items()]
    rows += [
        ("AUROC of any cancer against normal, slices with a label", _estimate(report.figures.auroc)),
        (
            "calibration error of the probability of any cancer, slices with a label",
            _estimate(report.figures.calibration_error),
        ),
    ]
    if report.macro_f1:
        rows.append(("macro F1 of the labels, slices with a label", _estimate(report.macro_f1)))
    return ["Intervals are at 95 %, by patient.", _table(("figure", "value"), rows)]


def _outcomes(report: SiteReport, pictures: Sequence[str]) -> list[str]:
    columns = (*class_names(), *OUTCOMES[2:])
    rows = [
        (titles().get(label, label), *(str(counts.get(name, 0)) for name in columns))
        for label, counts in report.figures.table.items()
    ]
    head = ("is, by the site", *(f"accepted: {titles()[name].lower()}" for name in class_names()), *OUTCOMES[2:])
    reasons = "; ".join(f"{number} {name}" for name, number in report.reasons.items()) or "none"
    return [_table(head, rows), f"Reasons: {reasons}.", *(f"![{name[:-4]}]({name})" for name in pictures)]


def _grey_levels(levels: Sequence[GreyLevels]) -> list[str]:
    rows = [
        (
            titles().get(each.label, each.label),
            str(each.slices),
            str(each.dicom),
            str(each.black_lungs),
            _quartiles(each.air),
            _quartiles(each.tissue),
        )
        for each in levels
    ]
    lines = [
        "The service brings air and soft tissue to fixed grey levels, so the window of a picture should not matter. "
        "What a window has clipped is lost, though: in black lungs nothing can be seen. DICOM files hold Hounsfield "
        "units and are read through one window, which clips neither.",
        _table(("label", "slices", "DICOM", "black lungs", "lung: median, quartiles", "soft tissue"), rows),
    ]
    if any(
        abs(one.tissue[1] - other.tissue[1]) > 30 or (one.dicom > 0) != (other.dicom > 0)
        for one in levels
        for other in levels
    ):
        lines.append(
            "The labels differ in their grey levels or kinds of file, so the figures may measure that instead of lungs."
        )
    return lines


def _refitted(report: SiteReport) -> list[str]:
    found = report.refitted
    if found is None:
        return [f"Too few slices to refit the numbers: {report.missing}."]
    rows = [
        (words, str(found.before.shares[name] or "no such slices"), str(found.after.shares[name] or "no such slices"))
        for name, words in MEANINGS.items()
    ]
    rows.append(
        ("calibration error", _estimate(found.before.calibration_error), _estimate(found.after.calibration_error))
    )
    lines = [
        f"Temperature, thresholds and OOD limit were fitted on {found.fitted_slices} slices of "
        f"{found.fitted_patients} patients. The table shows the other half of the patients: {found.before.slices} "
        f"slices of {found.before.patients}. The new temperature is {found.temperature:.2f} times the old one.",
        _table(("figure", "as served", "refitted"), rows),
        _table(("number", "as served", "refitted"), _threshold_rows(found)),
    ]
    if found.tag:
        return [
            *lines,
            f"Stored as `{found.tag}`, with the weights of the base. It is served only by its tag: "
            f"`CHESTCT_MODEL={found.tag} make serve`. On the held-out half: {_verdict(found.marks)}",
        ]
    missed = _missed(found.marks)
    return [
        *lines,
        f"The held-out half would {f'not reach the bar: {missed}' if missed else 'reach the bar'}. Nothing was stored. "
        "`make site DATA=folder ADAPT=1` stores a model with these numbers.",
    ]


def _threshold_rows(found: Refitted) -> list[tuple[str, str, str]]:
    """Every threshold that can change, before and after."""
    both = (found.base_thresholds, found.thresholds)
    words = {
        "ood_limit": "unfamiliar above this `ood_score`",
        "refer_margin": "refer if the two highest probabilities are closer than",
        "any_cancer": "refer a normal slice from this probability of any cancer on",
        "conformal_quantile": "quantile of the prediction sets",
    }
    rows = [(what, *(f"{getattr(each, name):.3f}" for each in both)) for name, what in words.items()]
    rows += [
        (
            f"accept {titles()[name].lower()} from this probability on",
            *(f"{each.least_confidence[i]:.3f}" for each in both),
        )
        for i, name in enumerate(class_names())
    ]
    return [(what, before, after) for what, before, after in rows]


def _estimate(estimate: Estimate | None) -> str:
    return in_words(estimate) if estimate else "not measured"


def _quartiles(levels: tuple[float, float, float]) -> str:
    return f"{levels[1]:.0f}, {levels[0]:.0f} to {levels[2]:.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
