"""Files and folders of the stages, relative to the project's root, which is the current directory."""

from pathlib import Path
from typing import Final

PARAMS: Final = Path("params.yaml")

CODE: Final = Path("data/code")
"""Digests of the code of each stage (pipeline.core.source)."""

RAW: Final = Path("data/raw")
MANIFEST: Final = Path("data/manifest.json")
LEFT_OUT: Final = Path("reports/left_out.json")
"""Entries that ingest left out, by reason."""

POOL: Final = Path("data/prepared/pool.npz")
FACTS: Final = Path("data/prepared/facts.npz")
"""chestct.image.Facts of the images in POOL, one array for each field."""
EXTRA: Final = Path("data/prepared/extra.npz")
"""Images of other sources with partial labels (pipeline.network.fitting.Extra)."""
TEST: Final = Path("data/prepared/test.npz")
AUDIT: Final = Path("data/prepared/audit.json")
CONTACT_SHEET: Final = Path("reports/audit/contact_sheet.png")

BASE_MODEL: Final = Path("models/base.keras")
FEATURES: Final = Path("models/features.npz")

TRAINING: Final = Path("models/training")
"""Finished networks of a training that was killed, so that the next one goes on from there."""
FOLD_MODELS: Final = Path("models/folds")
FINAL_MODEL: Final = Path("models/final.keras")
OUT_OF_FOLD: Final = Path("models/out_of_fold.npz")
"""Of each image in POOL: `logits` by the network that never saw it, `labels`, `folds`, `scans` and `sha256`."""
RUN: Final = Path("models/run.json")
HISTORY: Final = Path("models/history.csv")

SWEEP: Final = Path("sweep.db")
"""Trials of `make sweep`, so that it can continue after a kill."""
SWEEP_SCRATCH: Final = Path("models/sweep")
"""Networks of the current trial."""

TRUST: Final = Path("models/trust.npz")
PROBE_PICTURES: Final = Path("models/probe_pictures.npz")
"""What the probe "is it a chest CT" is fitted on (pipeline.judging.probe_pictures)."""
STYLES: Final = Path("models/styles.npz")
"""Scores and input facts of the held-out images, shown in other styles."""

CALIBRATION: Final = Path("models/calibration.json")
OUT_OF_FOLD_METRICS: Final = Path("reports/out_of_fold.json")
CONFUSION: Final = Path("reports/confusion.csv")
"""True and most probable class of each image, out-of-fold, for `dvc plots`."""
KEY_FIGURES: Final = Path("reports/figures.json")
"""The few figures that `dvc metrics show` and `dvc exp show` compare. None is of the test folder."""
OUT_OF_FOLD_CARD: Final = Path("reports/metrics_oof.json")
"""The model card's out-of-fold figures (pipeline.judging.calibration.OutOfFold)."""
OUT_OF_FOLD_PLOTS: Final = Path("reports/out_of_fold")

RELEASE: Final = Path("models/release")
RELEASED: Final = Path("release")
"""The released model and the audit of its data, in git."""
QUANTISATION: Final = Path("reports/quantisation.json")

TEST_METRICS: Final = Path("reports/test.json")
TEST_PLOTS: Final = Path("reports/test")
TEST_OPENINGS: Final = Path("reports/test_openings.jsonl")

EXTERNAL: Final = Path("reports/external")
EXTERNAL_OPENINGS: Final = Path("reports/external_openings.jsonl")
"""When slices of other sources were opened, and with which model."""
SITE: Final = Path("reports/site")
DRIFT: Final = Path("build/drift/facts.png")


def fold_model(fold: int) -> Path:
    """Return the path of the network that never saw the images of `fold`, counted from 0."""
    return FOLD_MODELS / f"fold{fold}.keras"
