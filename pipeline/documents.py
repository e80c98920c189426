"""Writes the documents about the released model: model card, data sheet, pictures and the figures in README.

Run `python -m pipeline.documents` in the project's root. `python -m pipeline.store --release release` runs it too. It
reads release/ and the record of the test folder's openings, and measures nothing. It writes "not measured" for whatever
a card lacks. The prose is in pipeline/templates/.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from statistics import stdev
from string import Template
from typing import Any, Final

import yaml

from chestct.card import Estimate, Metrics, ModelCard
from chestct.store import CARD, GRAPH
from pipeline.core import paths
from pipeline.judging.plots import draw_metrics, draw_ood, in_words

MODEL_CARD: Final = Path("docs/reference/model-card.md")
DATA_SHEET: Final = Path("docs/reference/data-sheet.md")
PICTURES: Final = Path("docs/images/model")
README: Final = Path("README.md")

NOT_MEASURED: Final = "not measured"
BAD_INPUT: Final = 2

_UNMEASURED: Final = f"{NOT_MEASURED.capitalize()}."
_TEMPLATES: Final = Path(__file__).parent / "templates"
_BEGIN: Final = "<!-- begin of what `python -m pipeline.documents` writes -->\n"
_END: Final = "<!-- end of what `python -m pipeline.documents` writes -->\n"


def write() -> None:
    """Write the texts, and replace the pictures in PICTURES."""
    for path, text in texts().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    card = _card()
    for old in PICTURES.glob("*.png"):
        old.unlink()
    draw_metrics(card.metrics["out_of_fold"], card.titles, PICTURES, dpi=80, note=digest())
    if card.ood_scores:
        draw_ood(card.ood_scores, card.thresholds.ood_limit, PICTURES, dpi=80, note=digest())


def texts() -> dict[Path, str]:
    """The content of each document, by its path. README is missing if there is no file to change."""
    card, audit = _card(), _audit()
    found = {MODEL_CARD: _model_card(card), DATA_SHEET: _data_sheet(card, audit)}
    if README.is_file():
        before, begin, rest = README.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        found[README] = f"{before}{begin}{_summary(card)}\n{end}{after}"
    return found


def picture_names() -> set[str]:
    """The names of the files in PICTURES."""
    return {f"{name}.png" for name in _words()["pictures"] if name != "ood" or _card().ood_scores}


def digest() -> str:
    """SHA-256 of the card. Each picture stores it as pipeline.judging.plots.NOTE."""
    return hashlib.sha256((paths.RELEASED / CARD).read_bytes()).hexdigest()


def _card() -> ModelCard:
    return ModelCard.read(paths.RELEASED / CARD)


def _audit() -> dict[str, Any]:
    file = paths.RELEASED / paths.AUDIT.name
    content: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return content


@cache
def _words() -> dict[str, dict[str, str]]:
    """How the documents name the keys of a card and an audit, by kind of key."""
    words: dict[str, dict[str, str]] = yaml.safe_load((_TEMPLATES / "words.yaml").read_text(encoding="utf-8"))
    return words


def _fill(template: str, **values: object) -> str:
    return Template((_TEMPLATES / f"{template}.md").read_text(encoding="utf-8")).substitute(values)


def _model_card(card: ModelCard) -> str:
    splits, titles = _words()["splits"], _words()["pictures"]
    known = {name: card.metrics[name] for name in splits if name in card.metrics}
    thresholds = card.thresholds
    pictures = [
        f"![{words}](../images/model/{name}.png)" for name, words in titles.items() if name != "ood" or card.ood_scores
    ]
    if not card.ood_scores:
        pictures.append(f"{titles['ood']}: {NOT_MEASURED}.")
    required = zip(card.classes, thresholds.least_confidence, strict=True)
    clustered = all(each.clusters is not None for name, each in card.metrics.items() if name != "out_of_fold")
    return _fill(
        "model_card",
        **_common(card),
        height=card.input.height,
        width=card.input.width,
        size=_megabytes(),
        classes=", ".join(card.titles[name] for name in card.classes),
        intervals="The 95 % intervals come from a bootstrap over whole clusters of look-alikes, because slices of one"
        " scan are not independent."
        + ("" if clustered else " On the test folder it draws single images, so these intervals are too narrow."),
        metrics=_table(
            ("figure", *(f"{splits[name]} ({_size(m)})" for name, m in known.items())),
            (
                (words, *(in_words(getattr(m, name)) for m in known.values()))
                for name, words in _words()["figures"].items()
            ),
        ),
        folds=_folds(card),
        baselines=_baselines(card),
        by_class="\n\n".join(f"{_sentence(splits[name])}:\n\n{_classes(m, card)}" for name, m in known.items()),
        pictures="\n\n".join(pictures),
        ood_limit=f"{thresholds.ood_limit:.3f}",
        refer_margin=f"{thresholds.refer_margin:.3f}",
        any_cancer=f"{thresholds.any_cancer:.3f}",
        least_confidence=", ".join(f"{card.titles[name]} {least:.3f}" for name, least in required),
        decisions=_table(
            ("images", "accepted", "referred", "rejected"),
            (
                (splits[name], *(f"{share:.1%}" for share in (1 - m.referred - m.rejected, m.referred, m.rejected)))
                for name, m in known.items()
            ),
        ),
        other_pictures=_other_pictures(card),
        checks=_table(("check", "mean"), ((f"`{name}`", in_words(each)) for name, each in card.checks.items()))
        if card.checks
        else _UNMEASURED,
        arithmetic=_arithmetic(card),
        caveats="\n".join(f"- {caveat}" for caveat in card.caveats),
    )


def _data_sheet(card: ModelCard, audit: Mapping[str, Any]) -> str:
    stale = audit and audit["digest"] != card.lineage.data_digest
    tasks = ("four_classes", "normal_or_cancer")
    probes = (
        (
            _words()["probes"].get(name, name),
            *(f"{probe[f'{task}_balanced']:.2f}" for task in tasks),
        )
        for name, probe in audit.get("shortcuts", {}).items()
    )
    return _fill(
        "data_sheet",
        **_common(card),
        origin=_fill("phantoms" if card.synthetic else "kaggle").rstrip(),
        audit_digest=f"; **this audit is of other data, `{audit['digest']}`**" if stale else "",
        counts=_counts(card, audit) if audit else _UNMEASURED,
        faults=_faults(card, audit) if audit else _UNMEASURED,
        shortcuts=_table(("features", "four classes", "normal or cancer"), probes) if audit else _UNMEASURED,
    )


def _common(card: ModelCard) -> dict[str, object]:
    """Values that both documents use."""
    return {
        **card.lineage.model_dump(),
        "disclaimer": card.disclaimer,
        "licence": card.licence,
        "openings": _openings(card),
    }


def _summary(card: ModelCard) -> str:
    """The figures in README."""
    known = {words: card.metrics[name] for name, words in _words()["splits"].items() if name in card.metrics}
    table = _table(
        ("images", "number", "accuracy", "macro F1", "ROC AUC"),
        (
            (words, str(m.images), in_words(m.accuracy), in_words(m.macro_f1), in_words(m.roc_auc))
            for words, m in known.items()
        ),
    )
    lines = [f"`{card.lineage.backbone}` at {card.input.height} pixels, {_megabytes()} MB."]
    if "test_without_twins" in card.metrics:
        normal = card.metrics["test_without_twins"].classes[card.normal].images
        lines.append(f"Only {normal} of the test images without duplicates are normal, so their figures say little.")
    return f"{table}\n\n" + "\n".join(lines)


def _arithmetic(card: ModelCard) -> str:
    if card.bfloat16 is None:
        return ""
    return _fill(
        "arithmetic",
        agreement=f"{card.bfloat16.agreement:.1%}",
        same_decision=f"{card.bfloat16.same_decision:.1%}",
        gain=f"{-100 * card.bfloat16.accuracy_fall + 0.0:+.1f}",
    )


def _megabytes() -> str:
    return f"{(paths.RELEASED / GRAPH).stat().st_size / 1e6:.1f}"


def _folds(card: ModelCard) -> str:
    if not card.folds:
        return NOT_MEASURED
    figures = {
        "accuracy": [fold.accuracy for fold in card.folds],
        "macro F1": [fold.macro_f1 for fold in card.folds],
    }
    return "; ".join(
        f"{words} {min(values):.3f} to {max(values):.3f}, standard deviation {stdev(values):.3f}"
        for words, values in figures.items()
    )


def _size(metrics: Metrics) -> str:
    return f"{metrics.images}" if metrics.clusters is None else f"{metrics.images} in {metrics.clusters} clusters"


def _baselines(card: ModelCard) -> str:
    metrics = card.metrics["out_of_fold"]
    rows: list[tuple[str, ...]] = [("**this model**", in_words(metrics.accuracy), in_words(metrics.macro_f1))]
    for name, words in _words()["baselines"].items():
        figures: Mapping[str, Estimate] = card.baselines.get(name, {})
        found = (figures.get(figure) for figure in ("accuracy", "macro_f1"))
        rows.append((words, *(in_words(each) if each else NOT_MEASURED for each in found)))
    return _table(("answers by", "accuracy", "macro F1"), rows)


def _classes(metrics: Metrics, card: ModelCard) -> str:
    return _table(
        ("class", "images", "precision", "recall", "F1"),
        (
            (card.titles[name], str(each.images), in_words(each.precision), in_words(each.recall), in_words(each.f1))
            for name, each in metrics.classes.items()
        ),
    )


def _other_pictures(card: ModelCard) -> str:
    if not card.others:
        return _UNMEASURED
    scores = list(dict.fromkeys(score for each in card.others.values() for score in each.rejected_by))
    return _table(
        ("pictures", "number", "rejected", *(f"by {score} alone" for score in scores)),
        (
            (
                name.replace("_", " "),
                str(each.images),
                f"{each.rejected:.1%}",
                *(f"{each.rejected_by[score]:.1%}" if score in each.rejected_by else NOT_MEASURED for score in scores),
            )
            for name, each in card.others.items()
        ),
    )


def _counts(card: ModelCard, audit: Mapping[str, Any]) -> str:
    clusters = "clusters of these"
    columns = {
        **audit["images"],
        "train and valid, distinct": audit["pool"],
        clusters: audit["clusters"]["per_class"],
        "test images with a duplicate": audit["twins_per_class"],
    }
    rows = [(card.titles[name], *(str(counts[name]) for counts in columns.values())) for name in card.classes]
    totals = {name: sum(counts.values()) for name, counts in columns.items()}
    totals[clusters] = audit["clusters"]["number"]  # less than the sum if a cluster has several classes
    return _table(("class", *columns), [*rows, ("all", *map(str, totals.values()))])


def _faults(card: ModelCard, audit: Mapping[str, Any]) -> str:
    clusters, sizes = audit["clusters"], (audit["width"], audit["height"])
    near = audit.get("near_twins")
    unseen = card.metrics.get("test_without_twins")
    return _fill(
        "faults",
        copies=_count(audit["copies"], "picture"),
        copied_files=sum(map(len, audit["copies"])),
        near_duplicates=_count(audit.get("near_duplicates"), "pair"),
        near_conflicts=_count(audit.get("near_conflicts"), "pair"),
        conflicts="; ".join(", ".join(f"`{path}`" for path in group) for group in audit["conflicts"]) or "none",
        test_exact=_count(audit["twins"], "image"),
        test_near=NOT_MEASURED
        if near is None
        else ", ".join(f"`{pair['paths'][0]}` ({pair['correlation']:.3f})" for pair in near) or "none",
        unseen=f"{unseen.images} images" if unseen else f"images that were {NOT_MEASURED}",
        test_look_alikes=_count(audit.get("test_look_alikes"), "image"),
        clusters=clusters["number"],
        single=clusters["of_one_image"],
        largest=max(clusters["largest"], default=1),
        mixed=len(clusters["with_several_classes"]) or "none",
        **{name: " x ".join(str(side[name]) for side in sizes) for name in ("least", "median", "most")},
        formats=", ".join(f"{count} {name}" for name, count in audit["formats"].items()),
        misnamed=_count(audit["misnamed"], "file"),
        unreadable=_count(audit["unreadable"], "file"),
    ).rstrip()


def _openings(card: ModelCard) -> str:
    if not paths.TEST_OPENINGS.is_file():
        return _UNMEASURED
    openings = [json.loads(line) for line in paths.TEST_OPENINGS.read_text(encoding="utf-8").splitlines()]
    here = [each for each in openings if each["data_digest"] == card.lineage.data_digest]
    own = [each for each in here if each["model_sha256"] == card.lineage.model_sha256]
    runs = {each["run_id"] for each in here}
    text = (
        f"On these data: {_count(here, 'opening')}, for {_count(runs, 'training run')}; for this graph:"
        f" {_count(own, 'opening')}. `{paths.TEST_OPENINGS}` has a line for each. Their figures chose nothing."
    )
    rows = ((each["opened"], f"`{each['run_id'][:12]}`", f"`{each['model_sha256'][:12]}`") for each in here)
    return f"{text}\n\n{_table(('opened', 'run', 'graph'), rows)}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _count(found: Any, noun: str) -> str:
    if found is None:
        return NOT_MEASURED
    return f"{len(found) or 'no'} {noun}{'' if len(found) == 1 else 's'}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def main() -> int:
    """Returns the exit code: 0, or 2 if there is no released model."""
    try:
        write()
    except FileNotFoundError as error:
        print(f"documents: expected {error.filename}, found none; run it in the project's root", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
