"""Plots of a model card's figures, for DVC, MLflow and docs/."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from chestct.card import Estimate, Metrics, ScoreCounts

NOTE: Final = "Description"
"""PNG keyword under which a picture stores the text `note`."""

_ACCENT: Final = "#1f6feb"
_MUTED: Final = "#8b949e"
_ALARM: Final = "#cf222e"


def draw_metrics(
    metrics: Metrics, titles: Mapping[str, str], folder: Path, *, dpi: int = 130, note: str | None = None
) -> None:
    """Write confusion.png, reliability.png, risk_coverage.png and classes.png; `titles` names each class."""
    pictures: dict[str, Callable[[Axes], None]] = {
        "confusion": lambda axes: _draw_confusion(axes, metrics, titles),
        "reliability": lambda axes: _draw_reliability(axes, metrics),
        "risk_coverage": lambda axes: _draw_risk_coverage(axes, metrics),
        "classes": lambda axes: _draw_classes(axes, metrics, titles),
    }
    for name, draw in pictures.items():
        _save(draw, metrics.split, folder / f"{name}.png", dpi, note)


def draw_ood(scores: ScoreCounts, limit: float, folder: Path, *, dpi: int = 130, note: str | None = None) -> None:
    """Write ood.png: histograms of the OOD score, and its limit."""
    words = f"{scores.kind} score, each image by a network that was not trained on it"
    _save(lambda axes: _draw_ood(axes, scores, limit), words, folder / "ood.png", dpi, note)


def in_words(estimate: Estimate) -> str:
    """The value and its interval, such as `0.900 (0.850 to 0.950)`."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _save(draw: Callable[[Axes], None], heading: str, path: Path, dpi: int, note: str | None) -> None:
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.title.set_fontsize(11)
    figure.suptitle(heading, x=0.02, ha="left", fontsize=9, color=_MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={NOTE: note} if note else None)


def _draw_confusion(axes: Axes, metrics: Metrics, titles: Mapping[str, str]) -> None:
    confusion = np.array(metrics.confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text, colour = f"{confusion[row, column]}\n{share:.0%}", "white" if share > 0.55 else "#24292f"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    names = [_short(titles[name]) for name in metrics.classes]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Confusion: images, and share of the true class", xlabel="most probable class", ylabel="true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_reliability(axes: Axes, metrics: Metrics) -> None:
    points = metrics.reliability
    confidence, accuracy = [p.confidence for p in points], [p.accuracy for p in points]
    axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(confidence, accuracy, color=_ACCENT, marker="o", label="answers, a tenth of them at each point")
    axes.set_title(f"Reliability: expected calibration error {in_words(metrics.calibration_error)}")
    least = 1 / len(metrics.classes)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(least - 0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, loc="lower right")
    _plain(axes)


def _draw_risk_coverage(axes: Axes, metrics: Metrics) -> None:
    points = metrics.risk_coverage
    axes.plot([p.coverage for p in points], [p.risk for p in points], color=_ACCENT, linewidth=2, marker="o", ms=4)
    accepted = 1 - metrics.rejected - metrics.referred
    axes.axvline(accepted, color=_MUTED, linestyle="--", linewidth=1)
    axes.annotate(
        f"the service accepts {accepted:.0%}",
        (accepted, 1),
        (-6, -12),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=_MUTED,
    )
    axes.set_title("Risk and coverage: errors among the answers with the widest margin")
    axes.set(xlabel="share of images answered", ylabel="share of errors among them", xlim=(0, 1.02), ylim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _plain(axes)


def _draw_classes(axes: Axes, metrics: Metrics, titles: Mapping[str, str]) -> None:
    places = np.arange(len(metrics.classes))
    for offset, (kind, colour) in enumerate({"precision": "#9ecbff", "recall": "#54aeff", "f1": "#0a3069"}.items()):
        estimates: list[Estimate] = [getattr(each, kind) for each in metrics.classes.values()]
        values = np.array([each.value for each in estimates])
        reach = np.array([[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]])
        axes.bar(
            places + (offset - 1) * 0.27,
            values,
            0.25,
            yerr=reach,
            color=colour,
            capsize=2,
            error_kw={"ecolor": "#57606a", "elinewidth": 1},
            label={"f1": "F1"}.get(kind, kind),
        )
    axes.set_xticks(places, [_short(titles[name]) for name in metrics.classes])
    axes.tick_params(axis="x", length=0)
    axes.set(title=f"Each class, with 95 % intervals: macro F1 {in_words(metrics.macro_f1)}", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    _plain(axes)


def _draw_ood(axes: Axes, scores: ScoreCounts, limit: float) -> None:
    """A histogram in a row for each group of pictures, scaled to its fullest bin."""
    edges = np.array(scores.edges)
    places = range(len(scores.counts) - 1, -1, -1)
    for place, counts in zip(places, scores.counts.values(), strict=True):
        heights = 0.85 * np.array(counts) / max(*counts, 1)
        within = edges[1:] <= limit + 1e-9
        for chosen, colour in ((within, _ACCENT), (~within, _MUTED)):
            axes.bar(edges[:-1][chosen], heights[chosen], np.diff(edges)[chosen], place, align="edge", color=colour)
    axes.axvline(limit, color=_ALARM, linewidth=1.2, label=f"limit {limit:.2f}: chest CT above it is unfamiliar")
    axes.set_yticks(places, [re.sub(r"\bct\b", "CT", name.replace("_", " ")) for name in scores.counts], va="bottom")
    axes.tick_params(axis="y", length=0)
    axes.set_title("A higher score is less like the training images")
    axes.set_xlabel("score; the last bin includes all higher ones")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _short(title: str) -> str:
    return title.replace(" cell carcinoma", " cell\ncarcinoma").replace(" (", "\n(")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
