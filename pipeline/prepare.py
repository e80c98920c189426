"""Stage prepare: decodes and audits the images, drops duplicates, and divides train and valid into folds by scan."""

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
from pipeline.images.extra import read_extra
from pipeline.images.folds import make_folds
from pipeline.images.listing import name_some
from pipeline.images.manifest import Manifest
from pipeline.images.scans import Curated, number_scans
from pipeline.images.slices import SOURCE, Slice, read_slices


def prepare(params: Params) -> None:
    """Write POOL and FACTS (train and valid, with folds), EXTRA, TEST, AUDIT and CONTACT_SHEET from data/raw.

    Raises DataError if data/raw is not what the manifest says, if a class has too few images for the folds, or if more
    than data.max_left_out of the images can't be read.
    """
    manifest = Manifest.read()
    settings = params.prepare
    slices, unreadable = read_slices(manifest, InputSpec(height=settings.image_size, width=settings.image_size))
    curated = Curated.read()
    slices = number_scans(slices, curated, settings.scan_correlation)
    findings = audit.find(
        slices,
        duplicate=settings.duplicate_correlation,
        least_lung=settings.least_lung,
        without_lung=curated.without_lung,
    )
    pool, test = findings.pool, findings.test
    _require(pool, settings.folds, f"train and valid; prepare.folds {settings.folds} needs one for each fold")
    _require(test, 1, "test")
    if len(unreadable) > params.data.max_left_out * len(manifest.files):
        raise DataError(
            f"{len(unreadable)} of {len(manifest.files)} images can't be read, more than data.max_left_out allows "
            f"({params.data.max_left_out:g}): {name_some(list(unreadable))}; repair them, or raise it in {paths.PARAMS}"
        )

    labels = np.array([item.label for item in pool])
    folds = make_folds(labels, _scans(pool), settings.folds, params.seed)

    paths.POOL.parent.mkdir(parents=True, exist_ok=True)
    np.savez(paths.POOL, **_arrays(pool), folds=folds)
    # Stage train does not read the facts, so a new fact does not start a new training.
    np.savez(paths.FACTS, **input_facts.to_arrays([item.facts for item in pool]))
    np.savez(paths.EXTRA, **read_extra(params.data.extra))
    np.savez(
        paths.TEST,
        **_arrays(test),
        **input_facts.to_arrays([item.facts for item in test]),
        seen=~np.isin(_scans(test), _scans(findings.test_unseen)),
    )
    described = audit.describe(slices, unreadable, findings, folds, curated.scans.keys())
    lines = json.dumps({"source": params.data.source, "digest": manifest.digest, **described}, indent=1)
    paths.AUDIT.write_text(f"{lines}\n", encoding="utf-8")
    contact_sheet.draw(
        _sections(slices, findings),
        f"Audit of {len(slices)} images ({params.data.source}, data digest {manifest.digest[:12]})",
        paths.CONTACT_SHEET,
    )
    print(
        f"prepare: {len(pool)} images of {len(np.unique(_scans(pool)))} scans in {folds.max() + 1} folds, {len(test)}"
        f" in test, {len(test) - len(findings.test_unseen)} of them of a scan in train or valid, {len(unreadable)}"
        f" unreadable, {len(findings.exact_duplicates)} with exact duplicates, {len(findings.label_conflicts)} with"
        f" several labels, {len(findings.without_lung)} without lung; see {paths.CONTACT_SHEET}"
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
        "scans": _scans(slices),
        "sha256": np.array([item.file.sha256 for item in slices]),
        "paths": np.array([item.file.path for item in slices]),
    }


def _scans(slices: Sequence[Slice]) -> NDArray[np.int64]:
    return np.array([item.scan for item in slices], np.int64)


def _sections(slices: Sequence[Slice], findings: Findings) -> list[Section]:
    """The sections of the contact sheet, the worst faults first."""
    scans = audit.scans_of(slices)
    test_duplicates = sorted(findings.test_duplicates, key=lambda pair: pair.exact)
    return [
        Section("One picture under several labels, left out", findings.label_conflicts),
        Section("Scans under several labels", list(filter(audit.several_labels, scans))),
        Section("Without lung; those of train and valid are left out", [[item] for item in findings.without_lung]),
        Section("Test images of scans that train and valid do not have", [[item] for item in findings.test_unseen]),
        Section("Test images with a duplicate in train or valid, near ones first", _images(test_duplicates)),
        Section("Near duplicates: marked, scaled or encoded again", _images(findings.near_duplicates)),
        Section("Scans, the largest first; what of them is in train and valid stays in one fold", scans),
        Section("Exact duplicates in train and valid; only the first is kept", findings.exact_duplicates),
    ]


def _images(pairs: Sequence[Pair]) -> list[tuple[Slice, Slice]]:
    return [(pair.one, pair.other) for pair in pairs]


def main() -> None:
    runner.run(prepare)


if __name__ == "__main__":
    main()
