"""How often 50 real images raise an alarm: shown as usual, in a lung window, as JPEG of quality 50, of other sources.

`python -m pytest -m long -s tests/pipeline/test_drift_on_real_images.py` prints the table of
docs/how-to/watch-for-drift.md. In each round the scans of train and valid are halved at random. One half is the
reference. The released model has seen both halves, so they differ in its scores no more than two halves of new images.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest

from chestct import slice_file
from chestct.card import ModelCard
from chestct.engine import load
from chestct.image import Picture, decode, decode_grey, inspect
from chestct.standard_picture import find_body
from chestct.store import CARD, GRAPH
from chestct.watched import EDGES, Scores, count, measure
from pipeline.images.scans import Curated
from pipeline.judging.drift import compare
from pipeline.judging.reference import count_reference, probability_of_pair
from pipeline.judging.styles import show
from pipeline.network.augmentation import Source
from tests.server import ROOT

DATA = ROOT.parent / "shared" / "data"
TRAIN = DATA / "chest-ctscan-images" / "Data"
SOURCES = {"TCGA": "tcga", "Lung-PET-CT-Dx": "lung_pet_ct_dx", "LUNA16": "luna16"}
IMAGES = 50
USUAL_ROUNDS, CHANGED_ROUNDS = 200, 50

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not TRAIN.is_dir(), reason="the real images are not beside the project"),
]

CARD_READ = ModelCard.read(ROOT / "release" / CARD)


class Measured(NamedTuple):
    """Watched facts of images."""

    values: dict[str, NDArray[np.float64]]
    """Each [N]."""
    groups: NDArray[np.int64]
    """[N], scan or patient."""


def score(pictures: Iterable[Picture]) -> dict[str, NDArray[np.float64]]:
    engine, limit = load(ROOT / "release" / GRAPH, CARD_READ), CARD_READ.thresholds.ood_limit
    rows = []
    for picture in pictures:
        found = engine.infer(picture.pixels[np.newaxis])
        scores = Scores(found.probabilities[0], float(found.ood_score[0]), limit, float(found.chest_ct[0]))
        rows.append(measure(picture.facts, scores))
    return {name: np.array([row[name] for row in rows]) for name in EDGES}


def as_jpeg(content: bytes) -> Picture:
    buffer = BytesIO()
    decode_grey(inspect(content)).save(buffer, "JPEG", quality=50)
    return decode(buffer.getvalue(), CARD_READ.input)


def in_lung_window(content: bytes) -> Picture:
    grey: Image.Image = decode_grey(inspect(content))
    return show(Source(grey, find_body(grey)), "lung_window", CARD_READ.input)


def distinct_files() -> Iterator[tuple[bytes, str]]:
    """Each distinct file of train and valid whose scan is known and that shows lung, with its scan."""
    curated, seen = Curated.read(), set[str]()
    for path in sorted(path for split in ("train", "valid") for path in (TRAIN / split).rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest in curated.scans and digest not in curated.without_lung | seen:
            seen.add(digest)
            yield content, curated.scans[digest]


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    contents, scans = zip(*distinct_files(), strict=True)
    shown: dict[str, Callable[[bytes], Picture]] = {
        "as usual": lambda content: slice_file.read(content, CARD_READ.input),
        "lung window": in_lung_window,
        "JPEG of quality 50": as_jpeg,
    }
    numbers = np.unique(scans, return_inverse=True)[1]
    found = {name: Measured(score(map(way, contents)), numbers) for name, way in shown.items()}
    for name, folder in SOURCES.items():
        files = sorted(path for path in (DATA / "external" / folder).rglob("*") if path.is_file())
        patients = np.unique([path.stem.rpartition("_")[0] or path.stem for path in files], return_inverse=True)[1]
        found[name] = Measured(score(slice_file.read(path.read_bytes(), CARD_READ.input) for path in files), patients)
    return found


def alarms(measured: dict[str, Measured], shown: str, *, patients_known: bool) -> tuple[int, list[str]]:
    """The rounds with an alarm, and the facts that raised one in most of the rounds."""
    usual, rng = measured["as usual"], np.random.default_rng(11)
    rounds, raised = USUAL_ROUNDS if shown == "as usual" else CHANGED_ROUNDS, dict.fromkeys(EDGES, 0)
    count_of_alarms = 0
    for _ in range(rounds):
        scans = rng.permutation(np.unique(usual.groups))
        kept = np.isin(usual.groups, scans[: len(scans) // 2])
        reference = count_reference({name: each[kept] for name, each in usual.values.items()}, usual.groups[kept])
        later = measured[shown]
        rows = np.arange(len(later.groups)) if shown in SOURCES else np.flatnonzero(~kept)
        rows = rng.permutation(rows)[:IMAGES]
        same = probability_of_pair(later.groups[rows]) if patients_known else None
        counts = {name: count(name, each[rows]) for name, each in later.values.items()}
        drifted = [each.fact for each in compare(counts, reference, same, seed=1) if each.drifted]
        count_of_alarms += bool(drifted)
        for name in drifted:
            raised[name] += 1
    return count_of_alarms, [name for name, times in raised.items() if times > rounds / 2]


def test_50_images_raise_few_false_alarms_and_each_change_is_seen(measured: dict[str, Measured]) -> None:
    print(f"\n{len(measured['as usual'].groups)} images of {len(np.unique(measured['as usual'].groups))} scans")
    shares = {}
    for shown, patients_known in ((name, known) for name in measured for known in (True, False)):
        rounds = USUAL_ROUNDS if shown == "as usual" else CHANGED_ROUNDS
        times, facts = alarms(measured, shown, patients_known=patients_known)
        low, high = binomtest(times, rounds).proportion_ci(method="exact")
        print(
            f"| {shown} | {min(IMAGES, len(measured[shown].groups))} | {'known' if patients_known else 'unknown'} | "
            f"{times} of {rounds} ({times / rounds:.0%}, {low:.0%} to {high:.0%}) | {', '.join(facts)} |"
        )
        shares[shown, patients_known] = times / rounds
    assert max(shares.pop(("as usual", known)) for known in (True, False)) <= 0.05
    assert min(shares.values()) >= 0.9
