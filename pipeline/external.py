"""Asks the served model about slices of other sources, and counts what becomes of them.

`python -m pipeline.external FOLDER`: the folder holds `SOURCE/KNOWN/slice` or `SOURCE/KNOWN/patient/slice`. KNOWN says
what is known: `cancer`, a cancer's class, `LUAD` or `LUSC` (a cancer patient), `normal`, `other_disease`, `covid` and
the like, or `not_chest`. `sources.yaml` in the folder, or --sources, names others: `mystery: other disease`.

No command chooses anything by these figures. Each opening adds a line to EXTERNAL_OPENINGS.
"""

import argparse
from pathlib import Path

from chestct.card import DISCLAIMER
from chestct.digests import sha256_of
from chestct.store import GRAPH
from pipeline.core import openings, paths, runner
from pipeline.core.params import Params
from pipeline.foreign.answering import ACCEPTED_CANCER, OUTCOMES, UNREADABLE, answer_files, digest_of, open_model
from pipeline.foreign.folders import KINDS, kind_of, list_slices, read_overrides
from pipeline.foreign.pictures import draw_outcomes
from pipeline.foreign.slice_table import write_slices
from pipeline.foreign.tally import Group, Separation, Tally, count_groups, count_key_figures, separate
from pipeline.images.classes import normal_name
from pipeline.judging.plots import in_words


def external(params: Params, folder: Path, model_name: str | None = None, sources: Path | None = None) -> None:
    """Print the table, and write EXTERNAL: tally.json, slices.csv and outcomes.png.

    Raises DataError if nothing is known of a folder with slices, and StageError if there is no such model.
    """
    files = list_slices(folder, kind_of, read_overrides(folder, sources, KINDS))
    model = open_model(model_name)
    answered = answer_files(model, files)
    graph, digest = sha256_of(model.folder / GRAPH), digest_of(answered)
    earlier = openings.record(
        paths.EXTERNAL_OPENINGS, model=model.tag, model_sha256=graph, data_digest=digest, files=len(files)
    )
    tally = Tally(
        model=model.tag,
        model_sha256=graph,
        digest=digest,
        opening=len(earlier) + 1,
        groups=count_groups(answered),
        key_figures=count_key_figures(answered),
        separation=separate(answered, resamples=params.report.bootstrap, seed=params.seed),
        disclaimer=DISCLAIMER,
    )
    paths.EXTERNAL.mkdir(parents=True, exist_ok=True)
    tally.write(paths.EXTERNAL / "tally.json")
    write_slices(answered, paths.EXTERNAL / "slices.csv")
    draw_outcomes(
        {f"{group.source}: {group.known}": group.outcomes for group in tally.groups},
        f"What {model.tag} answers to slices of other sources. {DISCLAIMER}",
        paths.EXTERNAL / "outcomes.png",
    )
    print(f"{model.tag}; slices of other sources were opened {len(earlier)} times before this")
    print(*lines(tally), sep="\n")
    print(f"{paths.EXTERNAL}: tally.json, slices.csv and outcomes.png")


def lines(tally: Tally) -> list[str]:
    """The tables as lines of text."""
    shown = [f"{'source':<18}{'known':<16}{'slices':>7}{'patients':>9}  what the service answers, in %, with interval"]
    for group in tally.groups:
        shown += _group_lines(group)
    shown += ["", "over all sources"]
    for name, share in tally.key_figures.items():
        shown.append(f"  {name:<48}{share or 'no such slices'}")
    for name, each in tally.separation.items():
        shown += _separation_lines(name, each)
    alone = sum(group.slices_alone for group in tally.groups)
    shown.append("Intervals are at 95 %, by patient: the folder below the kind, or the file's name before its last _.")
    if alone:
        shown.append(f"{alone} slices name no patient. Each counts as one, so their intervals may be too narrow.")
    return [*shown, DISCLAIMER]


def _group_lines(group: Group) -> list[str]:
    head = f"{group.source[:17]:<18}{group.known:<16}{group.slices:>7}{group.patients:>9}"
    cancers = [f"{number} {label}" for label, number in group.labels.items() if label != normal_name()]
    shown = []
    for name in OUTCOMES:
        share = group.outcomes[name]
        if share.count:
            beside = f"  ({', '.join(cancers)})" if name == ACCEPTED_CANCER else ""
            shown.append(f"{head:<52}{name:<32}{share}{beside}")
            head = ""
    for what, counts in (("reasons", group.reasons), (UNREADABLE, group.problems)):
        if counts:
            shown.append(f"{'':<52}{what}: {', '.join(f'{number} {name}' for name, number in counts.items())}")
    return shown


def _separation_lines(name: str, found: Separation) -> list[str]:
    """The AUROC, what it was counted on, and what it can't say."""
    figure = in_words(found.auroc) if found.auroc else "not known"
    sides = [
        f"{slices} {what} of {patients} patient{'s' * (patients != 1)}"
        for what, slices, patients in (
            ("slices with cancer", found.cancers, found.cancer_patients),
            ("normal ones", found.normals, found.normal_patients),
        )
    ]
    shown = [f"  AUROC of any cancer against normal, {name}: {figure}; {', '.join(sides)}"]
    if found.auroc and min(found.cancer_patients, found.normal_patients) < 2:
        shown.append("    One patient on a side says nothing about another one, so the interval is 0 to 1.")
    return [*shown, f"    {found.caveat}"] if found.caveat else shown


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.external", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--model", metavar="MODEL", help="a tag, or a folder with a graph and its card; by default the served model"
    )
    parser.add_argument("--sources", type=Path, metavar="FILE", help="instead of FOLDER/sources.yaml")
    arguments = parser.parse_args()
    runner.run(external, arguments.folder, arguments.model, arguments.sources)


if __name__ == "__main__":
    main()
