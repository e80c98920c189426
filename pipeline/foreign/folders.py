"""Lists slices in folders whose names say what is known of them.

`SOURCE/KNOWN/slice` and `SOURCE/KNOWN/patient/slice` are both right, at any depth. KNOWN is a word of a small table,
such as `normal` or `LUSC`. The deepest folder whose name the table knows decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from chestct.dicom_format import is_dicom
from chestct.image import SIGNATURES
from pipeline.core.errors import DataError
from pipeline.images.classes import class_names, label_of, normal_name
from pipeline.images.listing import in_utf8, is_hidden, name_some

CANCER: Final = "cancer patient"
HEALTHY: Final = "normal"
OTHER: Final = "other disease"
NOT_CHEST: Final = "not chest CT"
KINDS: Final = (CANCER, HEALTHY, OTHER, NOT_CHEST)
"""What is known of foreign slices."""
ANY_CANCER: Final = "cancer"
"""A site's label of slices with a cancer of no given class. Its other labels are the classes."""

SOURCES: Final = "sources.yaml"
"""A file beside the folders that says what is known of some: `path or name of a folder: words`."""

_HISTOLOGY: Final = {"luad": "adenocarcinoma", "lusc": "squamous_cell_carcinoma"}
_CANCERS: Final = frozenset({"cancer", "cancer_patient", "lung_cancer", "malignant", "nsclc", "sclc"})
_NORMALS: Final = frozenset({"normal", "healthy", "no_finding"})
_OTHERS: Final = frozenset(
    {"other_disease", "covid", "covid19", "covid_19", "pneumonia", "tuberculosis", "emphysema", "fibrosis", "benign"}
)
_NOT_CHESTS: Final = frozenset({"not_chest", "not_chest_ct", "no_chest"})
_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
_NOTES: Final = frozenset({".md", ".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".pdf", ".html", ".xml"})
"""Suffixes of files that are no slices."""
_DEEPEST: Final = 12
"""Levels of folders, at most, because links can lead in a circle."""


class SliceFile(NamedTuple):
    path: Path
    name: str
    """Path below the listed folder, in UTF-8."""
    source: str
    """Path of the folder above the one that says what is known."""
    known: str
    """What is known: one of KINDS, or a site's label."""
    patient: str
    """A patient's folder, the file's name before its last `_`, or the whole name if there is neither."""
    alone: bool
    """Whether no patient is named, so that the slice counts as a patient of its own."""


def kind_of(folder: str) -> str | None:
    """What a folder's name says about foreign slices: one of KINDS, or None."""
    word = _word(folder)
    tables = {HEALTHY: _NORMALS, CANCER: _CANCERS, OTHER: _OTHERS, NOT_CHEST: _NOT_CHESTS}
    if word == normal_name():
        return HEALTHY
    found = next((kind for kind, words in tables.items() if word in words), None)
    return CANCER if word in class_names() else found or (CANCER if _cancer_of(folder) else None)


def site_label_of(folder: str) -> str | None:
    """The label that a folder's name gives a site's slices: a class, ANY_CANCER, or None."""
    word, cancer = _word(folder), _cancer_of(folder)
    if word in (*_NORMALS, normal_name()):
        return normal_name()
    return ANY_CANCER if word in _CANCERS or (cancer and cancer not in class_names()) else cancer


def read_overrides(folder: Path, file: Path | None, allowed: Sequence[str]) -> dict[str, str]:
    """What `file`, or else SOURCES in `folder`, says of folders. Raises DataError for words that are not `allowed`."""
    path = file or folder / SOURCES
    if not file and not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not set(map(str, content.values())) <= set(allowed):
        raise DataError(f"{path}: expected lines `FOLDER: WHAT IS KNOWN`, and one of {', '.join(allowed)} in each")
    return {str(name).strip("/"): str(known) for name, known in content.items()}


def list_slices(folder: Path, meaning: Callable[[str], str | None], overrides: Mapping[str, str]) -> list[SliceFile]:
    """List the files in and below each folder of which something is known: `overrides`, or else `meaning` of its name.

    Hidden entries and notes are left out, and outside of such folders everything that is no picture. Raises DataError
    if there are pictures in a folder of which nothing is known, if there are no slices, and if a folder can't be read.
    """
    found, unknown = list[SliceFile](), dict[str, None]()
    for path in list_files(folder):
        relative = path.relative_to(folder)
        parents = [parent for parent in reversed(relative.parents) if parent.name]
        named = [
            (place, known)
            for place, parent in enumerate(parents)
            if (known := overrides.get(parent.as_posix()) or overrides.get(parent.name) or meaning(parent.name))
        ]
        if named and path.suffix.lower() not in _NOTES:
            place, known = named[-1]
            found.append(_describe(path, folder, parents[place], parents[place + 1 :], known))
        elif not named and _is_picture(path):
            unknown.setdefault(in_utf8(relative.parent.as_posix()))
    where = in_utf8(str(folder))
    if unknown:
        raise DataError(
            f"{where}: nothing is known of {name_some(list(unknown))}; name a folder after what is known, such as "
            f"{normal_name()}, or say it in {SOURCES}"
        )
    if not found:
        raise DataError(f"{where}: no slices in a folder whose name says what is known of them")
    return found


def list_pictures(folder: Path) -> list[SliceFile]:
    """List the pictures in and below a folder, of which nothing is known but the patient in a file's name."""
    found = []
    for path in filter(_is_picture, list_files(folder)):
        name, (patient, _, rest) = path.relative_to(folder), path.stem.rpartition("_")
        found.append(SliceFile(path, in_utf8(name.as_posix()), "", "", in_utf8(patient or rest), alone=not patient))
    return found


def list_files(folder: Path) -> Iterator[Path]:
    """All files in and below `folder` that are not hidden. Links are followed. Raises DataError."""
    return _files(folder, _DEEPEST)


def _cancer_of(folder: str) -> str | None:
    """The cancer's class that a folder is named after, or None."""
    label = label_of(folder)
    name = class_names()[label] if label is not None else _HISTOLOGY.get(_word(folder))
    return None if name == normal_name() else name


def _is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name or its first bytes."""
    if path.suffix.lower() in _PICTURES:
        return True
    try:
        with path.open("rb") as file:
            begin = file.read(132)
    except OSError:
        return False
    return begin.startswith(SIGNATURES) or is_dicom(begin)


def _describe(path: Path, folder: Path, labelled: Path, below: Sequence[Path], known: str) -> SliceFile:
    """The slice at `path`; `labelled` says what is known, and `below` are the folders between it and the slice."""
    stem, _, _ = path.stem.rpartition("_")
    patient = below[0].name if below else stem or path.stem
    return SliceFile(
        path=path,
        name=in_utf8(path.relative_to(folder).as_posix()),
        source=in_utf8(labelled.parent.as_posix() if labelled.parent.name else folder.resolve().name),
        known=known,
        patient=in_utf8(patient),
        alone=not (below or stem),
    )


def _files(folder: Path, levels: int) -> Iterator[Path]:
    """All files in and below `folder` that are not hidden, to a depth of `levels`. Links are followed."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{in_utf8(str(folder))}: the folder can't be read ({error.strerror})") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            yield entry
        elif levels:
            yield from _files(entry, levels - 1)
        else:
            raise DataError(f"{in_utf8(str(entry))}: more than {_DEEPEST} folders deep; is a link a circle?")


def _word(folder: str) -> str:
    return "_".join(folder.lower().replace(".", " ").replace("-", " ").replace("_", " ").split())
