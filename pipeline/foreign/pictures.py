"""Pictures of what the served model answers to slices from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from chestct.watched import EDGES
from pipeline.foreign.answering import (
    ACCEPTED_CANCER,
    ACCEPTED_NORMAL,
    NOT_CHEST_CT,
    OUTCOMES,
    REFERRED,
    REFUSED,
    UNFAMILIAR,
    UNREADABLE,
)
from pipeline.foreign.site_figures import SiteFigures
from pipeline.judging.drift import Drift
from pipeline.judging.plots import in_words
from pipeline.judging.shares import Share

COLOURS: Final = {
    ACCEPTED_CANCER: "#a40e26",
    ACCEPTED_NORMAL: "#1f6feb",
    REFERRED: "#d4a72c",
    UNFAMILIAR: "#afb8c1",
    NOT_CHEST_CT: "#57606a",
    REFUSED: "#32383f",
    UNREADABLE: "#d8dee4",
}
_MUTED: Final = "#57606a"
_LEAST_WORDS: Final = 0.06
"""Least share of a bar that has room for its number."""
_DARK: Final = frozenset({ACCEPTED_CANCER, ACCEPTED_NORMAL, NOT_CHEST_CT, REFUSED})


def draw_outcomes(groups: Mapping[str, Mapping[str, Share]], heading: str, path: Path) -> None:
    """Write a PNG with a bar for each group of slices, divided into what became of them. No group is empty."""
    figure = Figure(figsize=(9, 1.7 + 0.45 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    lefts = dict.fromkeys(groups, 0.0)
    for outcome in OUTCOMES:
        widths = {name: shares[outcome].value for name, shares in groups.items()}
        axes.barh(
            list(groups), list(widths.values()), 0.7, left=list(lefts.values()), color=COLOURS[outcome], label=outcome
        )
        for place, (name, width) in enumerate(widths.items()):
            if width >= _LEAST_WORDS:
                colour = "white" if outcome in _DARK else "black"
                axes.text(
                    lefts[name] + width / 2, place, f"{width:.0%}", ha="center", va="center", fontsize=8, color=colour
                )
            lefts[name] += width
    axes.set_yticks(
        range(len(groups)),
        [f"{name}\n{_size(next(iter(shares.values())))}" for name, shares in groups.items()],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(heading, x=0.02, ha="left", fontsize=9, color=_MUTED)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_reliability(figures: SiteFigures, heading: str, path: Path) -> None:
    """Write a PNG of the probability of any cancer against the share that is one; `figures` has slices with a label."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    points = figures.reliability
    axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(
        [point.confidence for point in points],
        [point.accuracy for point in points],
        color=COLOURS[ACCEPTED_NORMAL],
        marker="o",
        label="slices with a label, a tenth of them at each point",
    )
    error = in_words(figures.calibration_error) if figures.calibration_error else "not measured"
    axes.set_title(f"Any cancer: expected calibration error {error}", fontsize=11)
    axes.set(xlabel="probability of any cancer", ylabel="share with cancer", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading, x=0.02, ha="left", fontsize=9, color=_MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_drift(found: Sequence[Drift], heading: str, path: Path) -> None:
    """Write a PNG with the histograms of each fact, now and in the reference."""
    rows = -(-len(found) // 3)
    figure = Figure(figsize=(11, 0.9 + 2.5 * rows), layout="constrained")
    for place, each in enumerate(found, 1):
        axes = figure.add_subplot(rows, 3, place)
        bins = np.arange(len(each.now))
        axes.bar(bins - 0.2, each.reference, 0.4, color=_MUTED, label="train and valid")
        axes.bar(bins + 0.2, each.now, 0.4, color=COLOURS[ACCEPTED_NORMAL], label="now")
        axes.set_xticks(bins[:-1] + 0.5, [f"{edge:g}" for edge in EDGES[each.fact]], fontsize=7)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        verdict = "  drift" if each.drifted else ""
        colour = COLOURS[ACCEPTED_CANCER] if each.drifted else "black"
        axes.set_title(f"{each.fact}  PSI {each.psi:.2f}{verdict}", fontsize=9, loc="left", color=colour)
    figure.suptitle(heading, x=0.02, ha="left", fontsize=9, color=_MUTED)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _size(share: Share) -> str:
    return f"{share.slices} slices, {share.patients} patients"
