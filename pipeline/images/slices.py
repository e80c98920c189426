"""Reads the images of data/raw and decodes them as the service does."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from chestct.card import InputSpec
from chestct.image import Facts, decode_encoded, decode_grey, inspect
from chestct.invalid_image import InvalidImage
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.images.classes import label_of
from pipeline.images.lung import lung_share
from pipeline.images.manifest import ImageFile, Manifest
from pipeline.images.thumbnails import thumbnails

STANDARD: Final = 256
"""Height and width, in pixels, of the standard picture that thumbnails and lungs are measured on."""
SOURCE: Final = 384
"""Height and width, in pixels, that the original picture is shrunk into."""
FRAME: Final = 0.03
"""Width of a picture's frame, as a share of its side."""


class Slice(NamedTuple):
    """A readable image of the data set."""

    file: ImageFile
    label: int
    pixels: NDArray[np.uint8]
    """[size, size, 1], the model's input."""
    facts: Facts
    """The input of the service's rules on the original picture."""
    mode: str
    """Pillow's mode of the file, such as RGBA, RGB, L or P."""
    format: str
    """Pillow's format of the file, PNG or JPEG."""
    greys: NDArray[np.float64]
    """`grey_levels` of the picture before it was resized."""
    source: NDArray[np.uint8]
    """[height, width], the original picture in grey, at most SOURCE high and wide. Training shows it in other ways."""
    thumbnail: NDArray[np.float32]
    """[64 * 64] (pipeline.images.thumbnails). It does not depend on the model's input size, nor do scans and folds."""
    lung: float
    """Share of the body that is lung (pipeline.images.lung)."""
    scan: int = -1
    """Number of the patient's scan, once pipeline.images.scans has found it."""

    @property
    def identity(self) -> bytes:
        """Equal for exact duplicates, whatever their bytes and modes."""
        return self.pixels.tobytes()


def read_slices(manifest: Manifest, spec: InputSpec) -> tuple[list[Slice], dict[str, str]]:
    """Decode every image, and return the readable ones and the reason for each other file, by its path.

    Raises DataError if data/raw is not what the manifest says.
    """
    slices, unreadable = [], {}
    for file in tqdm(manifest.files, desc="decoding", unit="image"):
        content = _read_checked(paths.RAW / file.path, file.sha256)
        label = label_of(file.folder)
        if label is None:
            raise DataError(f"{paths.RAW / file.path}: its folder is none of the classes; run `dvc repro` again")
        try:
            slices.append(_read_slice(file, label, content, spec))
        except InvalidImage as error:
            unreadable[file.path] = f"{error.code}: {error.message}"
    return slices, unreadable


def _read_slice(file: ImageFile, label: int, content: bytes, spec: InputSpec) -> Slice:
    encoded = inspect(content)
    pixels, facts = decode_encoded(encoded, spec)
    with Image.open(BytesIO(b"".join(encoded.parts))) as image:
        mode, kind = image.mode, str(image.format)
    grey = decode_grey(encoded)
    greys = grey_levels(np.asarray(grey)[:, :, np.newaxis])
    grey.thumbnail((SOURCE, SOURCE))
    standard = decode_encoded(encoded, InputSpec(height=STANDARD, width=STANDARD)).pixels
    return Slice(
        file,
        label,
        pixels,
        facts,
        mode,
        kind,
        greys,
        source=np.array(grey),
        thumbnail=thumbnails(standard[np.newaxis])[0],
        lung=lung_share(standard),
    )


def grey_levels(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Statistics of a picture uint8 [height, width, 1] and of its frame, float64 [8].

    For each: mean, standard deviation, share of levels below 8 and share above 247.
    """
    height, width, _ = pixels.shape
    frame = np.ones((height, width), bool)
    top, left = (max(1, round(FRAME * side)) for side in (height, width))
    frame[top:-top, left:-left] = False
    return np.array(
        [
            figure
            for part in (pixels, pixels[frame])
            for figure in (part.mean(), part.std(), (part < 8).mean(), (part > 247).mean())
        ]
    )


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `dvc repro` runs ingest, which fetches it again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: not the file in {paths.MANIFEST}; `dvc repro` runs ingest, which fetches it again")
    return content
