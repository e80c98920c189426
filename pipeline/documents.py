"""Writes what is read about the released model: its card and the data's sheet, pictures, and README's figures.

`python -m pipeline.documents`, in the project's root, from release/ and the record of the openings of the test folder;
`python -m pipeline.store --release release` does the same. Nothing here measures: what a card does not have is called
not measured.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import stdev
from typing import Any, Final

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

_GENERATED: Final = "<!-- written by `python -m pipeline.documents` from release/; changes here are lost -->"
_BEGIN: Final = "<!-- begin of what `python -m pipeline.documents` writes -->\n"
_END: Final = "<!-- end of what `python -m pipeline.documents` writes -->\n"
_SPLITS: Final = {
    "out_of_fold": "out-of-fold",
    "test": "Kaggle's test folder",
    "test_without_twins": "the same without twins",
}
_FIGURES: Final = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC, one class against the rest",
    "loss": "log-loss, nats",
    "brier": "Brier score, 0 to 2",
    "calibration_error": "expected calibration error, ten bins of equally many images",
    "calibration_error_if_perfect": "the same by chance alone, were every confidence right",
    "error_at_80_coverage": "errors among the 80 % with the widest margin",
    "cancer_sensitivity": "cancers that are not passed as a plain normal",
    "cancer_specificity": "normal images that are",
    "set_coverage": "prediction sets that hold the true class",
    "set_size": "classes in a prediction set, mean",
}
_BASELINES: Final = {
    "majority_class": "always the most frequent class",
    "geometry_alone": "the file's width and height alone",
    "nearest_pixels": "the label of the image nearest by pixels",
    "frozen_features": "logistic regression on the pretrained network's features",
}
_PICTURES: Final = {
    "confusion": "Which classes are taken for which",
    "classes": "Precision, recall and F1 of each class",
    "reliability": "Confidence, and the share that is right",
    "risk_coverage": "Errors among the answers that are left when unsure ones are withheld",
    "ood": "Scores for being unlike the training images",
}
_PROBES: Final = {
    "majority_class": "nothing: the most frequent class",
    "file_geometry": "the file's width and height",
    "file_grey_levels": "the file's grey levels",
    "file_frame": "the file's frame of 3 %",
    "file_all": "all of the file's",
    "input_mean_grey": "mean grey level of what the model sees",
    "input_grey_levels": "grey levels of what the model sees",
    "input_frame": "frame of what the model sees",
    "input_all": "all of what the model sees",
}
_TASKS: Final = ("four_classes", "normal_or_cancer")


def write() -> None:
    """Write the texts and, into PICTURES, the card's pictures instead of those that were there."""
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
    """What each text should say."""
    card, audit = _card(), _audit()
    found = {MODEL_CARD: _model_card(card), DATA_SHEET: _data_sheet(card, audit)}
    if README.is_file():
        before, begin, rest = README.read_text(encoding="utf-8").partition(_BEGIN)
        _, end, after = rest.partition(_END)
        found[README] = f"{before}{begin}{_summary(card)}\n{end}{after}"
    return found


def picture_names() -> set[str]:
    """The files that belong into PICTURES."""
    return {f"{name}.png" for name in _PICTURES if name != "ood" or _card().ood_scores}


def digest() -> str:
    """SHA-256 of the card, which each picture carries as pipeline.judging.plots.NOTE: what it was drawn from."""
    return hashlib.sha256((paths.RELEASED / CARD).read_bytes()).hexdigest()


def _card() -> ModelCard:
    return ModelCard.read(paths.RELEASED / CARD)


def _audit() -> dict[str, Any]:
    file = paths.RELEASED / paths.AUDIT.name
    content: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return content


def _model_card(card: ModelCard) -> str:
    lineage, thresholds = card.lineage, card.thresholds
    size = (paths.RELEASED / GRAPH).stat().st_size / 1e6
    known = {name: card.metrics[name] for name in _SPLITS if name in card.metrics}
    parts = [
        f"{_GENERATED}\n# Model card",
        f"**{card.disclaimer}**",
        f"{lineage.backbone} with a global average and one dense layer on {card.input.height} x {card.input.width} grey"
        f" pixels, started from {lineage.weights} weights, trained on {lineage.image_count} distinct images"
        f" ({lineage.data_source}; [data sheet](data-sheet.md)). One ONNX graph of {size:.1f} MB, made"
        f" {lineage.created} from commit `{lineage.git_commit[:12]}`, trained from commit"
        f" `{lineage.trained_commit[:12]}`, run `{lineage.run_id}`, data `"
        f"{lineage.data_digest[:12]}`, SHA-256 `{lineage.model_sha256}`.",
        "## Intended use",
        "To learn, teach and try: how a classifier of chest-CT slices is trained, measured and served so that it says"
        " how sure it is and when it must not answer. It takes one axial slice as a picture and tells which of these it"
        " shows: " + ", ".join(card.titles[name] for name in card.classes) + ".",
        "Not for diagnosis, triage or any decision about a person; not for other parts of the body, other diseases,"
        " X-rays, MR, nor whole series. A person looks at every answer that is `refer`; `reject` has no label.",
        "## How well it does",
        "With 95 % intervals by bootstrap: whole clusters of look-alikes are drawn, since slices of one scan are no"
        " independent witnesses"
        + ("." if _in_clusters(card) else ", but of the test folder single images, so its intervals are too narrow.")
        + " Out-of-fold: each image by a network that has seen no look-alike of it."
        " Without twins: test images whose picture does not also stand in train or valid.",
        _metrics_table(known),
        f"Of each fold alone: {_folds(card)}.",
        "## Beside other ways to answer",
        "Out-of-fold, on the same folds:",
        _baselines_table(card),
        "## Each class",
        *(f"{_sentence(_SPLITS[name])}:\n\n{_classes_table(metrics, card)}" for name, metrics in known.items()),
        "## Pictures",
        "Drawn from the card, out-of-fold.",
        *(
            f"![{words}](../images/model/{name}.png)"
            for name, words in _PICTURES.items()
            if f"{name}.png" in picture_names()
        ),
        *([] if card.ood_scores else [f"Scores for being unlike the training images: {NOT_MEASURED}."]),
        "## When it does not answer",
        f"`reject` above {thresholds.ood_limit:.3f} of the score for being unlike the training images, or by a rule on"
        " the picture. `refer` if the two most probable classes are closer than"
        f" {thresholds.refer_margin:.3f}, if the label is normal while the cancers' probabilities sum to"
        f" {thresholds.any_cancer:.3f} or more, or if a label is less probable than its class demands."
        " The classes demand: "
        + ", ".join(
            f"{card.titles[name]} {least:.3f}"
            for name, least in zip(card.classes, thresholds.least_confidence, strict=True)
        )
        + ". All of these come from train + valid or from `params.yaml`; [trust.md](../explanation/trust.md) says how.",
        _table(
            ("images", "accepted", "referred", "rejected"),
            (
                (_SPLITS[name], *(f"{share:.1%}" for share in (1 - m.referred - m.rejected, m.referred, m.rejected)))
                for name, m in known.items()
            ),
        ),
        "Other pictures, which chose no limit; share rejected, mean over the folds' networks:",
        _others_table(card),
        "## Small changes and heat maps",
        "Out-of-fold. `flips`: labels changed by small changes of the picture. `heatmap_on_body` beside `body_area`:"
        " share of the label's map on the body, and of the picture that the body fills. `heatmap_like_random_head`:"
        " rank correlation with the map of a random head. `occlusion_agrees`: images on which hiding what the map"
        " points to lowers the label's logit more than hiding what it does not.",
        _table(("check", "mean"), ((f"`{name}`", in_words(each)) for name, each in card.checks.items()))
        if card.checks
        else f"{_sentence(NOT_MEASURED)}.",
        *_arithmetic(card),
        "## Limits",
        "\n".join(f"- {caveat}" for caveat in card.caveats),
        "## How often the test folder was opened",
        _openings(card),
        "## Licence",
        card.licence,
    ]
    return "\n\n".join(parts) + "\n"


def _data_sheet(card: ModelCard, audit: Mapping[str, Any]) -> str:
    lineage = card.lineage
    parts = [
        f"{_GENERATED}\n# Data sheet",
        f"**{card.disclaimer}**",
        "## What it is",
        "Drawn phantoms, no patient's images."
        if card.synthetic
        else "Kaggle's chest CT-scan images,"
        " [`mohamedhanyyy/chest-ctscan-images`](https://www.kaggle.com/datasets/mohamedhanyyy/chest-ctscan-images):"
        " single axial CT slices as PNG and JPEG, collected from several sources, in folders train, valid and test,"
        " in each a folder a class. No patient ids, no DICOM headers, no window, no scanner, no age or sex. It is"
        " sometimes called an X-ray set; that is wrong.",
        f"Source `{lineage.data_source}`, digest `{lineage.data_digest}`: SHA-256 over every file's path and SHA-256."
        " What follows is the audit that stage prepare makes of it"
        + (
            "."
            if not audit or audit["digest"] == lineage.data_digest
            else f"; **this audit is of other data, `{audit['digest']}`**."
        ),
        "## How many",
        _counts_table(card, audit),
        *_faults(card, audit),
        "## Shortcuts",
        "How well plain facts tell the class, by a linear discriminant over the folds, mean of the classes' shares told"
        " right. What is far above guessing a network can learn instead of the lesion.",
        _table(
            ("from", "four classes", "normal or cancer"),
            (
                (_PROBES.get(name, name), *(f"{probe[f'{task}_balanced']:.2f}" for task in _TASKS))
                for name, probe in audit["shortcuts"].items()
            ),
        )
        if "shortcuts" in audit
        else f"{_sentence(NOT_MEASURED)}.",
        "## What becomes of it",
        "Kaggle's folders stay the outer split. In train and valid equal pictures collapse to one, those with two"
        " labels leave, and look-alikes stay in one fold. Every choice and every fitted number comes from train and"
        " valid. The test folder is opened by stage report alone. The network sees grey levels at one size: the file's"
        " width and height are gone, the window is not.",
        "## How often the test folder was opened",
        _openings(card),
        "## Licence and people",
        card.licence,
        "No image of it is part of this project, its releases or its containers; names of files are. This project"
        " does not know whether the patients agreed, nor who labelled the slices and how.",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(card: ModelCard) -> str:
    """README's block."""
    known = {words: card.metrics[name] for name, words in _SPLITS.items() if name in card.metrics}
    table = _table(
        ("images", "number", "accuracy", "macro F1", "ROC AUC"),
        (
            (words, str(m.images), in_words(m.accuracy), in_words(m.macro_f1), in_words(m.roc_auc))
            for words, m in known.items()
        ),
    )
    size = (paths.RELEASED / GRAPH).stat().st_size / 1e6
    lines = [f"`{card.lineage.backbone}` at {card.input.height} pixels, {size:.1f} MB."]
    if "test_without_twins" in card.metrics:
        normal = card.metrics["test_without_twins"].classes[card.normal].images
        lines.append(f"The test images without twins hold {normal} normal ones: what depends on them says little.")
    return f"{table}\n\n" + "\n".join(lines)


def _arithmetic(card: ModelCard) -> Iterable[str]:
    if card.bfloat16 is None:
        return
    cost = card.bfloat16
    yield "## Arithmetic"
    yield (
        "Where its CPU has instructions for it the service computes in bfloat16, and again in float32 where the two"
        " most probable classes come closer than the refer margin. Out-of-fold, beside the networks as"
        f" trained, that keeps {cost.agreement:.1%} of the labels and {cost.same_decision:.1%} of the decisions, and"
        f" changes accuracy by {-100 * cost.accuracy_fall + 0.0:+.1f} points. The out-of-fold figures above are of the"
        " networks as trained, those of the test folder of the graph as it is served."
    )


def _metrics_table(known: Mapping[str, Metrics]) -> str:
    return _table(
        ("figure", *(f"{_SPLITS[name]} ({_size(m)})" for name, m in known.items())),
        ((words, *(in_words(getattr(m, name)) for m in known.values())) for name, words in _FIGURES.items()),
    )


def _folds(card: ModelCard) -> str:
    if not card.folds:
        return NOT_MEASURED
    parts = []
    for words, figures in (
        ("accuracy", [fold.accuracy for fold in card.folds]),
        ("macro F1", [fold.macro_f1 for fold in card.folds]),
    ):
        parts.append(f"{words} {min(figures):.3f} to {max(figures):.3f}, standard deviation {stdev(figures):.3f}")
    return "; ".join(parts)


def _in_clusters(card: ModelCard) -> bool:
    return all(each.clusters is not None for name, each in card.metrics.items() if name != "out_of_fold")


def _size(metrics: Metrics) -> str:
    return f"{metrics.images}" if metrics.clusters is None else f"{metrics.images} in {metrics.clusters} clusters"


def _baselines_table(card: ModelCard) -> str:
    metrics = card.metrics["out_of_fold"]
    rows: list[tuple[str, ...]] = [("**this model**", in_words(metrics.accuracy), in_words(metrics.macro_f1))]
    for name, words in _BASELINES.items():
        figures: Mapping[str, Estimate] = card.baselines.get(name, {})
        rows.append((words, *(_or_not_measured(figures.get(figure)) for figure in ("accuracy", "macro_f1"))))
    return _table(("answers by", "accuracy", "macro F1"), rows)


def _classes_table(metrics: Metrics, card: ModelCard) -> str:
    return _table(
        ("class", "images", "precision", "recall", "F1"),
        (
            (card.titles[name], str(each.images), in_words(each.precision), in_words(each.recall), in_words(each.f1))
            for name, each in metrics.classes.items()
        ),
    )


def _others_table(card: ModelCard) -> str:
    if not card.others:
        return f"{_sentence(NOT_MEASURED)}."
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


def _counts_table(card: ModelCard, audit: Mapping[str, Any]) -> str:
    if not audit:
        return f"{_sentence(NOT_MEASURED)}."
    columns = {
        **audit["images"],
        "train and valid, distinct": audit["pool"],
        "clusters of these": audit["clusters"]["per_class"],
        "test images with a twin": audit["twins_per_class"],
    }
    rows = [(card.titles[name], *(str(counts[name]) for counts in columns.values())) for name in card.classes]
    # A cluster can hold several classes, so that their numbers do not add up to that of the clusters.
    totals = [sum(counts.values()) for counts in columns.values()]
    totals[list(columns).index("clusters of these")] = audit["clusters"]["number"]
    return _table(("class", *columns), [*rows, ("all", *map(str, totals))])


def _faults(card: ModelCard, audit: Mapping[str, Any]) -> Iterable[str]:
    yield "## Faults"
    if not audit:
        yield f"{_sentence(NOT_MEASURED)}."
        return
    width, height = audit["width"], audit["height"]
    clusters = audit["clusters"]
    near = audit.get("near_duplicates")
    near_twins, relabelled = audit.get("near_twins"), audit.get("near_conflicts")
    without_twins = card.metrics.get("test_without_twins")
    alone = f"{without_twins.images} images" if without_twins else NOT_MEASURED
    yield "\n".join(
        f"- {line}"
        for line in (
            f"**Copies**: {_count(audit['copies'], 'picture')} in train and valid that several files show, pixel for"
            f" pixel; {sum(map(len, audit['copies']))} files, of which one each is kept.",
            f"**Near duplicates**, marked, scaled or encoded again, in all folders: {_count(near, 'pair')}; under"
            f" different labels: {_count(relabelled, 'pair')}.",
            "**Several labels** for one picture, left out: "
            + ("; ".join(", ".join(f"`{path}`" for path in group) for group in audit["conflicts"]) or "none")
            + ".",
            f"**Twins**: {_count(audit['twins'], 'image')} of test whose pixels also stand in train or valid;"
            f" near twins: {_near_twins(near_twins)}. The model card's figures without twins are over {alone}.",
            f"**Look-alikes of training images among the test images without twins**:"
            f" {_count(audit.get('test_look_alikes'), 'image')}.",
            f"**No patient ids**: {clusters['number']} clusters of look-alikes stand in for scans,"
            f" {clusters['of_one_image']} of a single image, the largest of {max(clusters['largest'], default=1)};"
            f" {_count(clusters['with_several_classes'], 'cluster')} with several classes.",
            f"**Sizes** from {width['least']} x {height['least']} to {width['most']} x {height['most']} pixels at most,"
            f" in the middle {width['median']} x {height['median']}.",
            "**Formats**: " + ", ".join(f"{count} {name}" for name, count in audit["formats"].items()) + "; named as"
            f" another: {_count(audit['misnamed'], 'file')}; unreadable: {_count(audit['unreadable'], 'file')}.",
        )
    )


def _near_twins(pairs: list[dict[str, Any]] | None) -> str:
    if pairs is None:
        return NOT_MEASURED
    return ", ".join(f"`{pair['paths'][0]}` ({pair['correlation']:.3f})" for pair in pairs) or "none"


def _openings(card: ModelCard) -> str:
    if not paths.TEST_OPENINGS.is_file():
        return f"{_sentence(NOT_MEASURED)}."
    openings = [json.loads(line) for line in paths.TEST_OPENINGS.read_text(encoding="utf-8").splitlines()]
    here = [each for each in openings if each["data_digest"] == card.lineage.data_digest]
    own = [each for each in here if each["model_sha256"] == card.lineage.model_sha256]
    runs = {each["run_id"] for each in here}
    text = (
        f"On these data: {_count(here, 'opening')}, for {_count(runs, 'training run')}; for this very graph:"
        f" {_count(own, 'opening')}. `{paths.TEST_OPENINGS}` has a line for each; nothing was chosen by what it showed."
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


def _or_not_measured(estimate: Estimate | None) -> str:
    return in_words(estimate) if estimate else NOT_MEASURED


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def main() -> int:
    """Returns the exit code: 0, or 2 where there is no released model."""
    try:
        write()
    except FileNotFoundError as error:
        print(f"documents: expected {error.filename}, found none; run it in the project's root", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
