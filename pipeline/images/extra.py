"""Reads images of other sources of which only a part of the label is known, for training alone (`data.extra`)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from chestct import slice_file
from chestct.invalid_image import InvalidImage
from pipeline.core.errors import DataError
from pipeline.core.params import ExtraSource
from pipeline.images.classes import ANY_CANCER, class_count, class_names, normal_name
from pipeline.images.slices import SOURCE

_HIDDEN: Final = "."


def read_extra(wanted: Sequence[ExtraSource]) -> dict[str, Any]:
    """The arrays of pipeline.network.fitting.Extra, and `sha256` [M] of the files.

    Raises DataError for a folder that is missing or empty, or a file that is no slice.
    """
    pictures, sizes, allowed, digests = [], [], [], []
    for source in wanted:
        for folder, label in source.labels.items():
            classes = [label == name or (label == ANY_CANCER and name != normal_name()) for name in class_names()]
            for path in tqdm(_files(source.path / folder), desc=f"reading {folder}", unit="image"):
                data = path.read_bytes()
                try:
                    grey = slice_file.read_grey(data)
                except InvalidImage as error:
                    raise DataError(f"data.extra: {path}: {error.message}; remove the file") from error
                grey.thumbnail((SOURCE, SOURCE))
                picture = np.zeros((SOURCE, SOURCE), np.uint8)
                picture[: grey.height, : grey.width] = np.asarray(grey)
                pictures.append(picture)
                sizes.append(grey.size)
                allowed.append(classes)
                digests.append(hashlib.sha256(data).hexdigest())
    return {
        "sources": np.array(pictures, np.uint8).reshape(-1, SOURCE, SOURCE),
        "source_sizes": np.array(sizes, np.int64).reshape(-1, 2),
        "allowed": np.array(allowed, bool).reshape(-1, class_count()),
        "sha256": np.array(digests, str),
    }


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_HIDDEN))
    if not found:
        raise DataError(f"data.extra: no images in {folder}; correct the path in params.yaml")
    return found
