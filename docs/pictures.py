"""Draw the pictures of docs/explanation/architecture.md as SVG: the parts, a request, and an image in training.

python -m docs.pictures
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

FOLDER: Final = Path(__file__).with_name("images")
WIDTH: Final = 720
HIGH: Final = 52
"""Pixels from the top of a box to its bottom."""
_STYLE: Final = """
text {font: 14px system-ui, sans-serif; fill: #1b2a2f; text-anchor: middle}
.file {font: 12px ui-monospace, monospace; fill: #33565e}
.group {font-weight: 600; text-anchor: start}
line {stroke: #33565e; stroke-width: 1.5; marker-end: url(#tip)}
"""
_TIP: Final = (
    '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0 8 4 0 8Z" fill="#33565e"/></marker>'
)


class Box(NamedTuple):
    """A part: its left and top edge and its width in pixels, its name, and its file or folder."""

    left: int
    top: int
    width: int
    name: str
    file: str


class Group(NamedTuple):
    """A frame around parts, with a title."""

    left: int
    top: int
    width: int
    height: int
    name: str


GROUPS: Final = (
    Group(20, 30, 680, 190, "Training"),
    SERVICE := Group(20, 350, 680, 340, "Service: service.py"),
    WORKER := Group(230, 375, 460, 305, "Worker, one for each core"),
)
PARTS: Final = {
    "images": Box(40, 60, 170, "Images", "a folder, or Kaggle"),
    "stages": Box(260, 60, 210, "Eight stages", "dvc.yaml, pipeline/*.py"),
    "runs": Box(520, 60, 160, "Runs", "MLflow"),
    "gate": Box(520, 150, 160, "Gate", "pipeline/store.py"),
    "shared": Box(200, 250, 130, "Shared code", "chestct/"),
    "release": Box(350, 250, 130, "Released model", "release/"),
    "store": Box(520, 250, 160, "Model store", "graph + card.json"),
    "clients": Box(40, 250, 140, "Clients", "HTTP, gRPC"),
    "http": Box(250, 410, 190, "HTTP server", "serving/http/"),
    "grpc": Box(480, 410, 190, "gRPC server", "serving/rpc/"),
    "supervisor": Box(40, 410, 160, "Supervisor", "serving/supervision/"),
    "queue": Box(250, 510, 420, "Decoders, queue, batches", "serving/inference/"),
    "engine": Box(250, 610, 190, "Engine", "chestct/engine.py"),
    "guarded": Box(480, 610, 190, "Guarded process", "chestct/reader_child.py"),
}
ARROWS: Final = (
    *(("images", "stages"), ("stages", "runs"), ("runs", "gate"), ("gate", "store"), ("release", "store")),
    *(("supervisor", "http"), ("http", "queue"), ("grpc", "queue"), ("queue", "engine"), ("queue", "guarded")),
)
REQUEST: Final = (
    ("Read the head, bound the connection", "serving/http/connections.py"),
    ("Open the request record", "serving/http/request_recording.py"),
    ("Refuse with 429 if the queue is full", "serving/http/admission_control.py"),
    ("Check the API key", "serving/http/require_api_key.py"),
    ("Read the body within its memory budget", "serving/http/body.py, form.py"),
    (
        "Decode: a cheap image in a thread, a costly one in the guarded process",
        "serving/inference/decoding.py, chestct/image.py",
    ),
    ("Wait in the queue, form a batch", "serving/inference/batcher.py"),
    ("Run the graph", "chestct/engine.py"),
    ("Apply the rules: accept, refer or reject", "chestct/prediction.py"),
    ("Answer; write metrics, span and log line", "serving/http/v1.py, telemetry/request_record.py"),
)
IMAGE: Final = (
    ("List and copy the file, write its digest", "pipeline/ingest.py -> data/manifest.json"),
    ("Decode it as the service does", "pipeline/prepare.py, chestct/image.py"),
    (
        "Find its duplicates and look-alikes, choose its fold",
        "pipeline/images/duplicates.py, pipeline/images/folds.py",
    ),
    ("Compute its frozen features", "pipeline/base_model.py"),
    ("Train on it in the other folds, predict it in its own", "pipeline/train.py"),
    ("Change it a little, compare its heat maps", "pipeline/trust.py"),
    ("Fit temperature and thresholds on its out-of-fold scores", "pipeline/evaluate.py"),
    ("Write graph and card, check them against the network", "pipeline/export.py -> card.json"),
    ("Put graph, card and figures into the MLflow run", "pipeline/record.py"),
    ("On request, if it is of the test folder: score it, and count the opening", "pipeline/report.py"),
)


def draw_parts() -> str:
    lines = [_frame(group) for group in GROUPS]
    lines += [_arrow(PARTS[one], PARTS[other]) for one, other in ARROWS]
    lines += [_arrow(PARTS["store"], WORKER), _arrow(PARTS["clients"], SERVICE)]
    lines += [_box(box) for box in PARTS.values()]
    return _picture(lines, 710, "The parts of the project")


def draw_chain(steps: tuple[tuple[str, str], ...], title: str) -> str:
    boxes = [Box(60, 20 + 80 * row, 600, *step) for row, step in enumerate(steps)]
    lines = [_arrow(one, other) for one, other in pairwise(boxes)]
    return _picture([*lines, *map(_box, boxes)], 80 * len(boxes) + 12, title)


def _picture(lines: list[str], height: int, title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{title}</title>'
    paper = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#f6f9fa"/>'
    return "\n".join([head, f"<style>{_STYLE}</style><defs>{_TIP}</defs>", paper, *lines, "</svg>", ""])


def _frame(group: Group) -> str:
    left, top, width, height, name = group
    frame = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" fill="#e8f1f3" stroke="#9db8be"/>'
    return f'{frame}<text class="group" x="{left + 10}" y="{top + 19}">{escape(name)}</text>'


def _box(box: Box) -> str:
    left, top, width, name, file = box
    frame = f'<rect x="{left}" y="{top}" width="{width}" height="{HIGH}" rx="6" fill="#fff" stroke="#33565e"/>'
    middle = left + width // 2
    text = f'<text x="{middle}" y="{top + 22}">{escape(name)}</text>'
    return f'{frame}{text}<text class="file" x="{middle}" y="{top + 41}">{escape(file)}</text>'


def _arrow(one: Box, other: Box | Group) -> str:
    """Draw an arrow to the right if both are in one row, otherwise down the middle of the width that they share."""
    if one.top == other.top:
        y = one.top + HIGH // 2
        return f'<line x1="{one.left + one.width}" y1="{y}" x2="{other.left}" y2="{y}"/>'
    x = (max(one.left, other.left) + min(one.left + one.width, other.left + other.width)) // 2
    return f'<line x1="{x}" y1="{one.top + HIGH}" x2="{x}" y2="{other.top}"/>'


def pictures() -> dict[Path, str]:
    """The text of each picture, by its file."""
    return {
        FOLDER / "parts.svg": draw_parts(),
        FOLDER / "request.svg": draw_chain(REQUEST, "The path of one request"),
        FOLDER / "pipeline.svg": draw_chain(IMAGE, "The path of one image through the pipeline"),
    }


def main() -> None:
    for path, text in pictures().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m docs.pictures", description=__doc__).parse_args()
    main()
