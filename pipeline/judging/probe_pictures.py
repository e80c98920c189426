"""The pictures that the probe "is it a chest CT" is fitted on: chest CT of any source and window, and anything else.

Chest CT are the slices of the pool, as they came and shown otherwise, and the slices in the folders of
`trust.chest_ct`. The rest are other_pictures and the pictures in `trust.not_chest_ct`. No picture of a folder enters
the project: the card names the folders, and the number and digest of their pictures.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from chestct import slice_file
from chestct.card import ProbeSource
from chestct.invalid_image import InvalidImage
from chestct.standard_picture import find_body, standardise
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Augment, Params
from pipeline.images import made_scans
from pipeline.images.slices import SOURCE
from pipeline.judging import chest_ct
from pipeline.judging.chest_ct import LinearProbe
from pipeline.judging.other_pictures import SHOWN_WRONGLY
from pipeline.network.augmentation import Source, augment

Others = Sequence[tuple[str, bytes]]

POOL: Final = "pool"
"""Kind of the pool's slices."""
RESTYLED: Final = "pool, restyled"
"""Kind of the pool's slices, shown in another window, crop and resolution."""
VARIANTS: Final = 3
"""Other ways in which each picture of a folder is shown. A picture of other_pictures is shown in one other way."""
_EVERY: Final = 2
"""Every second slice gives its texture to one made scan of each kind."""

Features = NDArray[np.float32]
Flags = NDArray[np.bool_]


class ProbePictures(NamedTuple):
    """M pictures beside the N slices of the pool."""

    pixels: NDArray[np.uint8]
    """[M, S, S, 1], standard pictures."""
    kinds: NDArray[np.str_]
    """[M], RESTYLED, a group of other_pictures, or a folder's name."""
    chest: Flags
    """[M], whether it is a chest CT slice."""
    rows: NDArray[np.int64]
    """[M], the slice of the pool that it is made from; -1 for none."""

    @classmethod
    def load(cls) -> Self:
        """Read PROBE_PICTURES."""
        with np.load(paths.PROBE_PICTURES) as file:
            return cls(*(file[name] for name in cls._fields))

    def fit(self, pool: Features, others: Features, training: Flags, without: str | None = None) -> LinearProbe:
        """Fit the probe on summaries float32 of the pool [N, P] and of these pictures [M, P].

        `training` [N] are the slices of the pool that count, and `without` is a kind of pictures that does not.
        """
        used = (self.rows < 0) | training[self.rows]
        if without is not None:
            used &= self.kinds != without
        slices = np.count_nonzero(training)
        return chest_ct.fit(
            np.concatenate([pool[training], others[used]]),
            np.concatenate([np.ones(slices, bool), self.chest[used]]),
            np.concatenate([np.full(slices, POOL), self.kinds[used]]),
        )


def gather(params: Params, pool: Sequence[Source], pixels: NDArray[np.uint8], others: Others) -> dict[str, Any]:
    """The arrays of PROBE_PICTURES: the fields of ProbePictures, and `sources`, JSON of the card's ProbeSource.

    `pool` are the slices of the pool as they came, `pixels` [N, S, S, 1] their standard pictures, and `others` are
    groups and files of other_pictures. Raises DataError for a folder that is missing or empty, or a file that can't be
    read.
    """
    settings, side, rng = params.train.augment, pixels.shape[1], np.random.default_rng(params.seed)
    found = list[_Shown]()
    for row, source in enumerate(tqdm(pool, desc="restyling", unit="image")):
        found.append(_Shown(augment(source, settings, side, rng), RESTYLED, True, row))
        if row % _EVERY == 0:
            tissue = np.asarray(Image.fromarray(pixels[row, :, :, 0]).resize((made_scans.SIDE,) * 2))
            for kind, make in made_scans.SCANS.items():
                two = list(_show(_source(make(tissue, rng)), settings, side, 1, rng))
                found.append(_Shown(two[row // _EVERY % 2], kind, False, row))
    for kind, content in others:
        if kind not in SHOWN_WRONGLY and kind not in made_scans.SCANS:
            shown = _show(_source(slice_file.read_grey(content)), settings, side, 1, rng)
            found += [_Shown(each, kind, False, -1) for each in shown]
    sources = []
    for is_chest, folders in ((True, params.trust.chest_ct), (False, params.trust.not_chest_ct)):
        for folder in folders:
            files = _read(folder)
            for content in tqdm(files, desc=folder.name, unit="image"):
                shown = _show(_source(slice_file.read_grey(content)), settings, side, VARIANTS, rng)
                found += [_Shown(each, folder.name, is_chest, -1) for each in shown]
            digests = sorted(hashlib.sha256(each).hexdigest() for each in files)
            digest = hashlib.sha256("".join(digests).encode()).hexdigest()
            sources.append(ProbeSource(name=folder.name, chest_ct=is_chest, images=len(files), digest=digest))
    columns = zip(ProbePictures._fields, zip(*found, strict=True), strict=True)
    return {
        **{name: np.array(values) for name, values in columns},
        "sources": np.array([each.model_dump_json() for each in sources], str),
    }


def read_sources() -> tuple[ProbeSource, ...]:
    """The folders whose pictures PROBE_PICTURES holds."""
    with np.load(paths.PROBE_PICTURES) as file:
        return tuple(map(ProbeSource.model_validate_json, file["sources"].tolist()))


class _Shown(NamedTuple):
    """One of ProbePictures."""

    pixels: NDArray[np.uint8]
    kind: str
    chest: bool
    row: int


def _read(folder: Path) -> list[bytes]:
    """The files in and below the folder. Raises DataError if there are none, or one can't be read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DataError(f"trust: no pictures in {folder}; correct chest_ct and not_chest_ct in {paths.PARAMS}")
    for path in files:
        try:
            slice_file.read_grey(path.read_bytes())
        except InvalidImage as error:
            raise DataError(f"trust: {path}: {error.message}; remove the file") from error
    return [path.read_bytes() for path in files]


def _source(grey: Image.Image) -> Source:
    grey.thumbnail((SOURCE, SOURCE))
    return Source(grey, find_body(grey))


def _show(
    source: Source, settings: Augment, side: int, variants: int, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The standard picture, and those of `variants` other ways to show it."""
    yield standardise(source.picture, source.body, side, side)[..., np.newaxis]
    for _ in range(variants):
        yield augment(source, settings, side, rng)
