"""Answers foreign slices with a stored model, in the way that the service does."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from chestct import slice_file
from chestct.card import InputSpec, ModelCard
from chestct.dicom_format import is_dicom
from chestct.digests import Altered, check
from chestct.engine import Engine, load
from chestct.image import Facts
from chestct.invalid_image import InvalidImage
from chestct.prediction import Prediction, decide
from chestct.store import CARD, GRAPH, NoModel, ensure_model, find, tag_of
from pipeline.core import paths
from pipeline.core.errors import StageError
from pipeline.foreign.folders import SliceFile
from pipeline.images.classes import class_names, normal_name

TOGETHER: Final = 64
"""Slices whose pixels are in memory at the same time."""

ACCEPTED_CANCER: Final = "accepted as a cancer"
ACCEPTED_NORMAL: Final = "accepted as normal"
REFERRED: Final = "referred, with a label"
UNFAMILIAR: Final = "unfamiliar"
NOT_CHEST_CT: Final = "rejected as not a chest CT"
REFUSED: Final = "rejected by a rule on the input"
UNREADABLE: Final = "not readable"
OUTCOMES: Final = (ACCEPTED_CANCER, ACCEPTED_NORMAL, REFERRED, UNFAMILIAR, NOT_CHEST_CT, REFUSED, UNREADABLE)
"""What can become of a file."""


class Model(NamedTuple):
    tag: str
    folder: Path
    """Folder with GRAPH and CARD."""
    card: ModelCard
    engine: Engine
    """With the options of the service."""


class Answered(NamedTuple):
    """A file and what became of it."""

    file: SliceFile
    sha256: str
    """Empty if the file can't be opened."""
    problem: str
    """Why the file is no picture; empty if it is one."""
    prediction: Prediction | None
    """The service's answer; None with a problem."""
    facts: Facts | None
    dicom: bool
    """Whether it is a DICOM file, which has Hounsfield units."""
    logits: NDArray[np.floating] | None
    """[classes], before the card's scaling."""

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.prediction is None:
            return UNREADABLE
        if "not_chest_ct" in self.prediction.reasons:
            return NOT_CHEST_CT
        if self.prediction.decision == "reject":
            return REFUSED
        if self.prediction.label is None:
            return UNFAMILIAR
        if self.prediction.decision == "refer":
            return REFERRED
        return ACCEPTED_NORMAL if self.prediction.label == normal_name() else ACCEPTED_CANCER

    @property
    def labelled(self) -> bool:
        """Whether the answer has a label, accepted or referred."""
        return self.prediction is not None and self.prediction.label is not None


def open_model(name: str | None) -> Model:
    """Load the model with the tag `name`, the one in the folder `name`, or without a name the one that is served.

    Raises StageError if there is none, or if its files were changed.
    """
    try:
        if name and Path(name, CARD).is_file():
            folder, tag = Path(name), tag_of(Path(name, CARD))
            card = ModelCard.read(folder / CARD)
            check(folder / GRAPH, card.lineage.model_sha256)
        else:
            stored = find(ensure_model(name, paths.RELEASED))
            folder, tag, card = stored.folder, stored.tag, stored.read_card()
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise StageError(f"{name or paths.RELEASED}: this version can't read the model's card ({where})") from error
    except (NoModel, Altered, OSError) as error:
        raise StageError(" ".join(str(error).split())) from error
    if card.classes != class_names():
        raise StageError(
            f"{tag}: expected a model of the classes {', '.join(class_names())}, got {', '.join(card.classes)}"
        )
    engine = load(folder / GRAPH, card)
    return Model(tag, folder, card, engine)


def answer_files(model: Model, files: Sequence[SliceFile]) -> list[Answered]:
    """Read and answer each file, in order. A file that is no picture gets the reason and no answer."""
    answered = list[Answered]()
    with tqdm(total=len(files), desc="answering", unit="slice") as progress:
        for start in range(0, len(files), TOGETHER):
            part = files[start : start + TOGETHER]
            answered += _answer_part(model, part)
            progress.update(len(part))
    return answered


def number_patients(answered: Sequence[Answered]) -> NDArray[np.int64]:
    """The number [N] of each slice's patient. Patients of two sources differ, also if they are named alike.

    A slice of which no patient is named is a patient of its own, but copies of a file are of one patient.
    """
    numbers = dict[tuple[str, ...], int]()
    keys = [(each.sha256,) if each.file.alone else (each.file.source, each.file.patient) for each in answered]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], int)


def digest_of(answered: Iterable[Answered]) -> str:
    """SHA-256 over the sorted lines `path sha256` of the files, whatever folder they are in."""
    lines = sorted(f"{each.file.name} {each.sha256}\n" for each in answered)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _answer_part(model: Model, files: Sequence[SliceFile]) -> list[Answered]:
    read = [_read(file, model.card.input) for file in files]
    places = [place for place, (_, pixels) in enumerate(read) if pixels is not None]
    answered = [each for each, _ in read]
    if not places:
        return answered
    scores = model.engine.infer(np.stack([pixels for _, pixels in read if pixels is not None]))
    logits = scores.heatmaps.mean(axis=(2, 3)) + np.asarray(model.card.logit_bias, np.float32)
    for row, place in enumerate(places):
        each = answered[place]
        prediction = decide(
            model.card,
            scores.probabilities[row],
            float(scores.ood_score[row]),
            float(scores.chest_ct[row]),
            each.facts,
            request_id=each.file.name,
            model=model.tag,
        )
        answered[place] = each._replace(prediction=prediction, logits=logits[row])
    return answered


def _read(file: SliceFile, spec: InputSpec) -> tuple[Answered, NDArray[np.uint8] | None]:
    """The file without an answer, and its pixels if it is a picture."""
    sha256 = ""
    try:
        content = file.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        picture = slice_file.read(content, spec)
    except OSError as error:
        problem = f"can't be opened: {error.strerror}"
    except InvalidImage as error:
        problem = f"{error.code}: {error.message}"
    except MemoryError:
        problem = "image_too_large: the image takes more memory than there is"
    else:
        return Answered(file, sha256, "", None, picture.facts, is_dicom(content), None), picture.pixels
    return Answered(file, sha256, problem, None, None, False, None), None
