"""Writes the documents about the released model: model card, data sheet, pictures and the figures in README.

Run `python -m pipeline.documents` in the project's root. `python -m pipeline.store --release release` runs it too. It
reads release/ and the record of the test folder's openings, and measures nothing. The texts are in pipeline/templates/.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sized
from pathlib import Path
from statistics import stdev
from typing import Any, Final

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chestct.card import Estimate, Metrics, ModelCard
from chestct.digests import sha256_of
from chestct.store import CARD, GRAPH
from pipeline.core import paths
from pipeline.core.pages import replace_part
from pipeline.judging.plots import draw_metrics, draw_ood, in_words

MODEL_CARD: Final = Path("docs/reference/model-card.md")
DATA_SHEET: Final = Path("docs/reference/data-sheet.md")
PICTURES: Final = Path("docs/images/model")
README: Final = Path("README.md")

BAD_INPUT: Final = 2

_TEMPLATES: Final = Path(__file__).parent / "templates"
_UNKNOWN: Final = Estimate(value=0, low=0, high=1)
"""What a card says of a figure that could not be measured, for lack of images (pipeline.judging.metrics)."""


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
    values = _values(_card())
    # The documents are Markdown, so nothing is escaped for HTML.
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {
        "count": _count,
        "interval": _interval,
        "percent": "{:.1%}".format,
        "sentence": lambda text: text[0].upper() + text[1:],
        "spread": _spread,
    }
    found = {
        MODEL_CARD: templates.get_template("model_card.md").render(values),
        DATA_SHEET: templates.get_template("data_sheet.md").render(values),
    }
    if README.is_file():
        part = templates.get_template("readme.md").render(values)
        found[README] = replace_part(README.read_text(encoding="utf-8"), "python -m pipeline.documents", part)
    return found


def digest() -> str:
    """SHA-256 of the card. Each picture stores it as pipeline.judging.plots.NOTE."""
    return sha256_of(paths.RELEASED / CARD)


def _card() -> ModelCard:
    return ModelCard.read(paths.RELEASED / CARD)


def _words() -> dict[str, dict[str, str]]:
    """How the documents name the keys of a card and an audit, by kind of key."""
    words: dict[str, dict[str, str]] = yaml.safe_load((_TEMPLATES / "words.yaml").read_text(encoding="utf-8"))
    return words


def _values(card: ModelCard) -> dict[str, Any]:
    """The values that the templates use."""
    words = _words()
    known = {name: card.metrics[name] for name in words["splits"] if name in card.metrics}
    file = paths.RELEASED / paths.AUDIT.name
    audit: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    columns = _columns(audit) if audit else {}
    totals = {name: sum(counts.values()) for name, counts in columns.items()}
    if audit:
        totals["scans of these"] = audit["scans"]["number"]  # less than the sum if one has several classes
        words["splits"]["test"] += _of_known_scans(audit)
    scores = dict.fromkeys(score for each in card.others.values() for score in each.rejected_by)
    return {
        "card": card,
        "audit": audit,
        "words": words,
        "known": known,
        "sizes": [f"{words['splits'][name]} ({_size(m)})" for name, m in known.items()],
        "task": next(
            (key for key in next(iter(audit.get("shortcuts", {}).values()), {}) if "_classes" in key), ""
        ).removesuffix("_balanced"),
        "megabytes": f"{(paths.RELEASED / GRAPH).stat().st_size / 1e6:.1f}",
        "roundings": {name: getattr(card, name) for name in card.allowed("int8") if name != "float32"},
        "styles": [name.replace("_", " ") for name in next(iter(card.styles.values()), {})],
        "scores": [f"by {score} alone" for score in scores],
        "columns": columns,
        "totals": totals.values(),
        "openings": _openings(card),
        "row": _row,
        "head": lambda *cells: f"{_row(*cells)}\n|{'---|' * len(cells)}",
    }


def _columns(audit: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The columns of the data sheet's first table: the number of each class."""
    return {
        **audit["images"],
        "train and valid, distinct": audit["pool"],
        "scans of these": audit["scans"]["per_class"],
        "test images of these scans": audit["test_of_known_scans"],
    }


def _of_known_scans(audit: dict[str, Any]) -> str:
    """What the name of the test folder adds, so that none of its figures is taken for one of new patients."""
    known, every = (sum(counts.values()) for counts in (audit["test_of_known_scans"], audit["images"]["test"]))
    return f", {known} of {every} from scans in train or valid" if known else ""


def _openings(card: ModelCard) -> list[dict[str, str]] | None:
    """The openings of the test folder with the card's data, or None if there is no record."""
    if not paths.TEST_OPENINGS.is_file():
        return None
    openings = [json.loads(line) for line in paths.TEST_OPENINGS.read_text(encoding="utf-8").splitlines()]
    return [each for each in openings if each["data_digest"] == card.lineage.data_digest]


def _size(metrics: Metrics) -> str:
    return f"{metrics.images} images of {metrics.scans} scans"


def _row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def _interval(estimate: Estimate | StrictUndefined) -> str:
    return "not measured" if isinstance(estimate, StrictUndefined) or estimate == _UNKNOWN else in_words(estimate)


def _spread(values: Iterable[float]) -> str:
    each = list(values)
    return f"{min(each):.3f} to {max(each):.3f}, standard deviation {stdev(each):.3f}"


def _count(found: Sized | StrictUndefined, noun: str) -> str:
    if isinstance(found, StrictUndefined):
        return "not measured"
    return f"{len(found) or 'no'} {noun}{'' if len(found) == 1 else 's'}"


def main() -> int:
    """Returns the exit code: 0, or 2 if there is no released model."""
    try:
        write()
    except FileNotFoundError as error:
        print(f"documents: expected {error.filename}, found none; run it in the project's root", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m pipeline.documents", description=__doc__).parse_args()
    sys.exit(main())
