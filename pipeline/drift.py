"""Compares later images with what the model learned from, and says which watched facts have drifted.

`python -m pipeline.drift PLACE`: a folder of images, which the served model is asked about, or the service's inference
log in a folder or a bucket. It ends with exit code 0 without drift, 3 with drift, and 2 if it can't tell.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from typing import Final

import numpy as np

from chestct.card import DISCLAIMER
from chestct.watched import EDGES
from pipeline.core import paths, runner
from pipeline.core.errors import StageError
from pipeline.core.params import Params
from pipeline.foreign.answering import open_model
from pipeline.foreign.feed import Feed, read_feed
from pipeline.foreign.pictures import draw_drift
from pipeline.judging.drift import LEVEL, Drift, compare

LEAST: Final = 10
"""Images that a verdict needs."""
DRIFTED: Final = 3


def drift(params: Params, place: str, model_name: str | None = None, since: date | None = None) -> None:
    """Print the table of facts, and write DRIFT.

    `since` is the first day of a log that counts.
    Raises DataError if there are no images or rows. Raises StageError if the model's card has no reference or there are
    too few images, and with exit code 3 if a fact has drifted.
    """
    model = open_model(model_name)
    reference = model.card.reference
    if reference is None or {name: fact.edges for name, fact in reference.facts.items()} != EDGES:
        raise StageError(
            f"{model.tag}: its card has no reference to compare with; `make train` stores a model with one"
        )
    feed = read_feed(place, model, since)
    if feed.images < LEAST:
        raise StageError(f"{place}: {feed.images} images say too little; at least {LEAST} are needed")
    found = compare(feed.counts, reference, feed.same_scan, params.seed)
    draw_drift(found, f"{feed.images} images against what {model.tag} learned from. {DISCLAIMER}", paths.DRIFT)
    print(*lines(found, feed), sep="\n")
    print(f"{paths.DRIFT}: the histograms")
    print(DISCLAIMER)
    if drifted := [each.fact for each in found if each.drifted]:
        raise StageError(f"{', '.join(drifted)} drifted; docs/how-to/watch-for-drift.md says what to do", DRIFTED)


def lines(found: Sequence[Drift], feed: Feed) -> list[str]:
    """The table as lines of text, 100 characters wide at most."""
    shown = [f"{'fact':<18}{'images':>7}{'PSI':>8}{'p':>9}  {'verdict':<10}share that moved most, before and now"]
    for each in found:
        verdict = "DRIFT" if each.drifted else "as before"
        shown.append(
            f"{each.fact:<18}{each.images:>7}{each.psi:>8.3f}{each.p:>9.4f}  {verdict:<10}{_largest_move(each)}"
        )
    patients = "unknown patients, taken to be as alike as the reference's scans"
    if feed.patients is not None:
        patients = f"{feed.patients} patient{'s' * (feed.patients != 1)}, by the files' names"
    shown += ["", f"{feed.images} images of {patients}."]
    if feed.left_out:
        shown.append(f"Left out: {feed.left_out}.")
    return [
        *shown,
        f"PSI: population stability index. A fact drifted if its p is at most {LEVEL / len(found):.4f}. Then all facts",
        f"together raise a false alarm in {LEVEL:.0%} of cases, if a scan's slices are as alike as in the reference.",
    ]


def _largest_move(each: Drift) -> str:
    """The bin whose share changed most, and its shares."""
    edges = EDGES[each.fact]
    place = int(np.abs(each.now - each.reference).argmax())
    if place == 0:
        where = f"up to {edges[0]:g}"
    elif place == len(edges):
        where = f"over {edges[-1]:g}"
    else:
        where = f"{edges[place - 1]:g} to {edges[place]:g}"
    return f"{where}: {each.reference[place]:.0%}, {each.now[place]:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "place", metavar="PLACE", help="a folder of images, or an inference log: a folder, or a bucket's URL"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="a tag, or a folder with a graph and its card; by default the served model"
    )
    parser.add_argument(
        "--since", type=date.fromisoformat, metavar="YYYY-MM-DD", help="the first day of the log that counts"
    )
    arguments = parser.parse_args()
    runner.run(drift, arguments.place, arguments.model, arguments.since)


if __name__ == "__main__":
    main()
