"""Asks the served model about a site's own labelled slices, and writes an acceptance report into SITE.

`python -m pipeline.site FOLDER`: the folder holds `LABEL/slice` or `LABEL/patient/slice`. LABEL is a class, `LUAD` or
`LUSC`, or just `cancer` and `normal`. Exit code 3: the figures are below the bar of params.yaml, section `site`.

--adapt also refits temperature, thresholds and OOD limit on half of the patients, and stores the result as a
new model. The other half is held out. The weights stay.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct import slice_file
from chestct.card import DISCLAIMER, Adaptation
from chestct.digests import sha256_of
from chestct.store import GRAPH, import_model
from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.foreign.adaptation import Numbers, answer_again, refit, split, what_is_missing, write_adapted
from pipeline.foreign.answering import Answered, Model, answer_files, digest_of, number_patients, open_model
from pipeline.foreign.folders import ANY_CANCER, list_slices, site_label_of
from pipeline.foreign.pictures import draw_outcomes, draw_reliability
from pipeline.foreign.site_figures import MEANINGS, SiteFigures, judge, measure, to_answers
from pipeline.foreign.site_report import DO_NOT_USE, Refitted, SiteReport, measure_grey_levels, to_markdown
from pipeline.foreign.slice_table import write_slices
from pipeline.images.classes import titles
from pipeline.judging.metrics import Evaluation

CHECKED: Final = 16
"""Slices on which the adapted graph is checked."""


def site(params: Params, folder: Path, model_name: str | None = None, adapt: bool = False) -> None:
    """Write SITE: report.md, site.json, slices.csv and pictures. With `adapt`, store a model with refitted numbers.

    Raises DataError for a folder of no label, and StageError if there is no such model, if there are too few slices to
    adapt it (exit code 2), and if the figures are below the bar (exit code 3). The last two also write the report.
    """
    # A patient has one number in the whole site, whatever folder a slice is in.
    files = [file._replace(source="") for file in list_slices(folder, site_label_of, {})]
    model = open_model(model_name)
    if adapt and model.card.lineage.adapted:
        raise StageError(f"{model.tag} is adapted already; adapt its base, {model.card.lineage.adapted.base}")
    answered = answer_files(model, files)
    two = ANY_CANCER in {each.file.known for each in answered}
    halves = split(answered, params.seed)
    missing = what_is_missing(answered, halves, params.site.min_patients)
    figures = _measure(answered, params, two=two)
    evaluation = _evaluate(answered, params, two=two)
    report = SiteReport(
        model=model.tag,
        model_sha256=sha256_of(model.folder / GRAPH),
        digest=digest_of(answered),
        created=_now(),
        two_classes=two,
        slices_alone=sum(each.file.alone for each in answered),
        problems=dict(Counter(each.problem for each in answered if each.problem)),
        reasons=dict(Counter(reason for each in answered if each.prediction for reason in each.prediction.reasons)),
        figures=figures,
        macro_f1=evaluation.figures["macro_f1"] if evaluation else None,
        marks=judge(figures, params.site.bar),
        grey_levels=measure_grey_levels(answered),
        missing=missing,
        refitted=None if missing else _refit(model, answered, halves, params, two=two, store=adapt),
    )
    _write(report, answered, evaluation)
    if adapt and missing:
        raise StageError(
            f"too few slices to adapt {model.tag}: {missing}; {paths.SITE}/report.md is of the model as it is"
        )
    refitted = report.refitted if adapt else None
    tag, usable = (refitted.tag, refitted.usable) if refitted else (model.tag, report.usable)
    if not usable:
        raise StageError(f"{DO_NOT_USE} {tag} is below the bar: see {paths.SITE}/report.md", 3)


def _measure(answered: Sequence[Answered], params: Params, *, two: bool) -> SiteFigures:
    return measure(answered, two=two, resamples=params.site.bootstrap, seed=params.seed)


def _evaluate(answered: Sequence[Answered], params: Params, *, two: bool) -> Evaluation | None:
    """The figures of the slices with a label, by class; None if there are none, or if no classes are known."""
    if two or not any(each.labelled for each in answered):
        return None
    answers, labels, patients = to_answers(answered)
    return Evaluation(answers, labels, groups=patients, resamples=params.site.bootstrap, seed=params.seed)


def _refit(
    model: Model, answered: Sequence[Answered], fitting: NDArray[np.bool_], params: Params, *, two: bool, store: bool
) -> Refitted:
    """Refit the numbers on one half, measure the other half before and after, and `store` the model if wanted."""
    fitted, held_out = ([a for a, wanted in zip(answered, half, strict=True) if wanted] for half in (fitting, ~fitting))
    numbers = refit(fitted, model.card, params.evaluate, params.site.min_patients)
    after = _measure(answer_again(held_out, model.card, numbers, model.tag), params, two=two)
    found = Refitted(
        fitted_slices=len(fitted),
        fitted_patients=len(np.unique(number_patients(fitted))),
        temperature=numbers.temperature,
        base_thresholds=model.card.thresholds,
        thresholds=numbers.thresholds,
        before=_measure(held_out, params, two=two),
        after=after,
        marks=judge(after, params.site.bar),
        tag="",
    )
    return found.model_copy(update={"tag": _store(model, numbers, found, answered)}) if store else found


def _store(model: Model, numbers: Numbers, found: Refitted, answered: Sequence[Answered]) -> str:
    """Store the adapted model. Returns its tag."""
    origin = Adaptation(
        base=model.tag,
        slices=found.fitted_slices,
        patients=found.fitted_patients,
        data_digest=digest_of(answered),
        created=_now(),
    )
    caveat = (
        f"Adapted to one site: temperature, thresholds and OOD limit were refitted on {origin.slices} slices "
        f"of {origin.patients} patients. The figures of this card are of the base, {model.tag}. On the held-out half, "
        f"{'the bar was reached' if found.usable else f'the bar was not reached. {DO_NOT_USE}'}"
    )
    readable = [each.file.path for each in answered if each.prediction][:CHECKED]
    pixels = np.stack([slice_file.read(path.read_bytes(), model.card.input).pixels for path in readable])
    with TemporaryDirectory() as folder:
        write_adapted(model, numbers, Path(folder), origin, caveat, pixels)
        return import_model(Path(folder))


def _write(report: SiteReport, answered: Sequence[Answered], evaluation: Evaluation | None) -> None:
    """Write everything but the model, and print what a person wants to know first."""
    for old in paths.SITE.glob("*.png"):
        old.unlink()
    heading = f"{report.model} on a site's own slices. {DISCLAIMER}"
    draw_outcomes(
        {titles().get(label, label): shares for label, shares in report.figures.outcomes.items()},
        heading,
        paths.SITE / "outcomes.png",
    )
    if report.figures.reliability:
        draw_reliability(report.figures, heading, paths.SITE / "cancer.png")
    if evaluation:
        evaluation.draw(paths.SITE, f"{report.model} on a site's own slices, those with a label")
    report.write(paths.SITE / "site.json")
    write_slices(answered, paths.SITE / "slices.csv")
    pictures = sorted(path.name for path in paths.SITE.glob("*.png"))
    (paths.SITE / "report.md").write_text(to_markdown(report, pictures), encoding="utf-8")
    for mark in report.marks:
        print(f"{MEANINGS[mark.name]:<56}{mark.found or 'not measured'}")
    if report.refitted and report.refitted.tag:
        print(f"adapted: {report.refitted.tag}; `CHESTCT_MODEL={report.refitted.tag} make serve` serves it")
    print(f"{paths.SITE}/report.md; {DISCLAIMER}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.site", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--model", metavar="MODEL", help="a tag, or a folder with a graph and its card; by default the served model"
    )
    parser.add_argument("--adapt", action="store_true", help="store a model with refitted numbers")
    arguments = parser.parse_args()
    runner.run(site, arguments.folder, arguments.model, arguments.adapt)


if __name__ == "__main__":
    main()
