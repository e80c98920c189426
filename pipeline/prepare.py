"""Stage prepare: decodes and audits the images, drops duplicates, and divides train and valid into folds."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestct.card import InputSpec
from pipeline.core import paths, runner
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.images import audit, contact_sheet, input_facts
from pipeline.images.audit import Findings, Pair
from pipeline.images.contact_sheet import Section
from pipeline.images.folds import make_folds
from pipeline.images.listing import name_some
from pipeline.images.manifest import Manifest
from pipeline.images.scans import find_scans
from pipeline.images.slices import SOURCE, Slice, read_slices


def prepare(params: Params) -> None:
    """Write POOL and FACTS (train and valid, with folds), TEST, AUDIT and CONTACT_SHEET from data/raw.

    Raises DataError if data/raw is not what the manifest says, if a class has too few images for the folds, or if more
    than data.max_left_out of the images can't be read.
    """
    manifest = Manifest.read()
    settings = params.prepare
    slices, unreadable = read_slices(manifest, InputSpec(height=settings.image_size, width=settings.image_size))
    findings = audit.find(slices, duplicate=settings.duplicate_correlation, look_alike=settings.scan_correlation)
    pool, test = findings.pool, findings.test
    _require(pool, settings.folds, f"train and valid; prepare.folds {settings.folds} needs one for each fold")
    _require(test, 1, "test")
    if len(unreadable) > params.data.max_left_out * len(manifest.files):
        raise DataError(
            f"{len(unreadable)} of {len(manifest.files)} images can't be read, more than data.max_left_out allows "
            f"({params.data.max_left_out:g}): {name_some(list(unreadable))}; repair them, or raise it in {paths.PARAMS}"
        )

    labels = np.array([item.label for item in pool])
    of_file = dict(zip((item.file.path for item in slices), find_scans(slices, settings.scan_correlation), strict=True))
    scans, test_scans = (np.array([of_file[item.file.path] for item in part]) for part in (pool, test))
    known = np.array([scan for path, scan in of_file.items() if not path.startswith("test/")])
    folds = make_folds(labels, scans, settings.folds, params.seed)

    paths.POOL.parent.mkdir(parents=True, exist_ok=True)
    np.savez(paths.POOL, **_arrays(pool), folds=folds, scans=scans)
    # Stage train does not read the facts, so a new fact does not start a new training.
    np.savez(paths.FACTS, **input_facts.to_arrays([item.facts for item in pool]))
    np.savez(
        paths.TEST,
        **_arrays(test),
        **input_facts.to_arrays([item.facts for item in test]),
        seen=np.isin(test_scans, known),
        scans=test_scans,
    )
    described = audit.describe(slices, unreadable, findings, scans, folds)
    lines = json.dumps({"source": manifest.source, "digest": manifest.digest, **described}, indent=1)
    paths.AUDIT.write_text(f"{lines}\n", encoding="utf-8")
    contact_sheet.draw(
        _sections(findings, scans),
        f"Audit of {len(slices)} images ({manifest.source}, data digest {manifest.digest[:12]})",
        paths.CONTACT_SHEET,
    )
    near = sum(not pair.exact for pair in findings.test_duplicates)
    print(
        f"prepare: {len(pool)} images in {folds.max() + 1} folds and {len(np.unique(scans))} scans, {len(test)} in test"
        f" ({len(findings.test_duplicates)} of them duplicates of train or valid, {near} near); {len(unreadable)}"
        f" unreadable, {len(findings.exact_duplicates)} with exact duplicates, {len(findings.label_conflicts)} with"
        f" several labels; see {paths.CONTACT_SHEET}"
    )


def _require(slices: Sequence[Slice], least: int, where: str) -> None:
    short = [f"{name} {count}" for name, count in audit.per_class(slices).items() if count < least]
    if short:
        raise DataError(f"too few readable, distinct images in {where}: {', '.join(short)}")


def _arrays(slices: Sequence[Slice]) -> dict[str, Any]:
    sources = np.zeros((len(slices), SOURCE, SOURCE), np.uint8)
    for source, item in zip(sources, slices, strict=True):
        height, width = item.source.shape
        source[:height, :width] = item.source
    return {
        "pixels": np.stack([item.pixels for item in slices]),
        "sources": sources,
        "source_sizes": np.array([item.source.shape[::-1] for item in slices], np.int64),
        "labels": np.array([item.label for item in slices], np.int64),
        "sha256": np.array([item.file.sha256 for item in slices]),
        "paths": np.array([item.file.path for item in slices]),
    }


def _sections(findings: Findings, scans: NDArray[np.int64]) -> list[Section]:
    """The sections of the contact sheet, the worst faults first."""
    groups = audit.scans_of(findings.pool, scans)
    test_duplicates = sorted(findings.test_duplicates, key=lambda pair: pair.exact)
    return [
        Section("One picture under several labels, left out", findings.label_conflicts),
        Section("Test images with a duplicate in train or valid, near ones first", _images(test_duplicates)),
        Section("Test images without one that look like train or valid", _images(findings.test_look_alikes)),
        Section("Look-alikes under several labels", list(filter(audit.several_labels, groups))),
        Section("Near duplicates: marked, scaled or encoded again", _images(findings.near_duplicates)),
        Section("Scans, the largest first; each stays in one fold", groups),
        Section("Exact duplicates in train and valid; only the first is kept", findings.exact_duplicates),
    ]


def _images(pairs: Sequence[Pair]) -> list[tuple[Slice, Slice]]:
    return [(pair.one, pair.other) for pair in pairs]


def main() -> None:
    runner.run(prepare)


if __name__ == "__main__":
    main()
