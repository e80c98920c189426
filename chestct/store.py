"""The BentoML model store: the pipeline writes models to it, and the service reads them.

A model's version is the start of its card's SHA-256, and the card has the graph's SHA-256. So a tag identifies every
byte of a model, even in a store that older code wrote without digests.
"""

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore
from pydantic import ValidationError

from chestct import digests
from chestct.card import ModelCard

NAME: Final = "chestct"
GRAPH: Final = "model.onnx"
CARD: Final = "card.json"

_RELEASED: Final = "released"
_CARD_SHA256: Final = "card_sha256"
_VERSION_DIGITS: Final = 16


class NoModel(LookupError):
    """The store has no model that can be served. The message says what to do."""


class AlteredModel(NoModel):
    """A stored file was changed. The message names both digests and says what to do."""


class StoredModel(NamedTuple):
    tag: str
    folder: Path
    """Folder with GRAPH and CARD."""
    released: bool = False
    """Whether it came with the code instead of from a training here."""
    card_sha256: str = ""
    """SHA-256 of the card when the model was stored; empty for older models, which have it in the tag only."""

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    def read_card(self) -> ModelCard:
        """Read the card. Raises NoModel for a card of another version of the code that can't be read."""
        try:
            return ModelCard.read(self.folder / CARD)
        except ValidationError as error:
            raise NoModel(f"{self.tag}: this version can't read its card: {' '.join(str(error).split())}") from error

    def verify(self) -> None:
        """Check card and graph by the digests that they were stored with. Raises AlteredModel."""
        version, card = version_of(self.tag), self.folder / CARD
        try:
            digests.check(card, self.card_sha256 or version)
            digests.check(card, version)
            digests.check(self.graph, json.loads(card.read_bytes())["lineage"]["model_sha256"])
        except (digests.Altered, OSError) as error:
            raise AlteredModel(
                f"{self.tag} is not served: {error}; `rm -r {shlex.quote(str(self.folder))}`, then `make serve` stores "
                "the released model again, and `make store` the one of a training; build a bento again"
            ) from error


def version_of(tag: str) -> str:
    """The version in a tag: `abc` in `chestct:abc`."""
    return tag.partition(":")[2]


def tag_of(card: Path) -> str:
    """The tag of the model with the card in this file. Raises OSError."""
    return f"{NAME}:{digests.sha256_of(card)[:_VERSION_DIGITS]}"


def import_model(folder: Path, *, released: bool = False) -> str:
    """Copy GRAPH and CARD of `folder` into the store, with labels and lineage. Returns the tag.

    `released`: the model came with the code, and the model of a later release replaces it.

    The version is the card's digest, so a model has the same tag on every machine. If the model is already the newest
    one of its kind (real, synthetic, adapted), it is not stored again. Before that, card and graph are checked against
    each other, and against SHA256SUMS, which every released model has. If the import is killed, the store has the whole
    model or nothing of it. Raises OSError, pydantic's ValidationError or digests.Altered.
    """
    if released or (folder / digests.SUMS).exists():
        digests.check_sums(folder, GRAPH, CARD)
    card = ModelCard.read(folder / CARD)
    lineage = card.lineage
    digests.check(folder / GRAPH, lineage.model_sha256)
    card_sha256 = digests.sha256_of(folder / CARD)
    tag = tag_of(folder / CARD)
    trained_on = "synthetic" if card.synthetic else "real"
    labels = {
        "trained_on": f"{trained_on}, adapted" if lineage.adapted else trained_on,
        "backbone": lineage.backbone,
        "run_id": lineage.run_id,
        **({_RELEASED: "true"} if released else {}),
    }
    newest = _find_newest(labels["trained_on"])
    if newest and newest.tag == tag:
        with contextlib.suppress(AlteredModel):
            newest.verify()
            return tag
    with TemporaryDirectory(prefix="import-", dir=_store_folder().parent) as scratch:
        metadata = {**lineage.model_dump(exclude_none=True), _CARD_SHA256: card_sha256}
        with bentoml.models.create(tag, labels=labels, metadata=metadata, _model_store=ModelStore(scratch)) as model:
            for name in (GRAPH, CARD):
                shutil.copyfile(folder / name, model.path_of(name))
        made = StoredModel(tag, Path(scratch, *tag.split(":")), card_sha256=card_sha256)
        made.verify()
        _move_into_store(made.folder, Path(scratch, "old"))
    return tag


def find(tag: str | None = None) -> StoredModel:
    """Find the model with this tag, or the newest one that was trained on real images, and check its digests.

    A model that was trained on phantoms, or adapted to a site, is found only by its tag. Raises NoModel.
    """
    if tag is not None:
        try:
            found = _to_stored_model(bentoml.models.get(tag))
        except Exception as error:  # BentoML's, or a parser's for a torn file
            raise NoModel(f"no model {tag!r} in the BentoML store; `bentoml models list` shows them all") from error
    else:
        newest = _find_newest("real")
        if newest is None:
            raise NoModel("no model trained on real images in the BentoML store; `make serve` imports the released one")
        found = newest
    found.verify()
    return found


def ensure_model(tag: str | None, release: Path) -> str:
    """Tag of the model that the service uses: the one with this tag, or else the newest real one.

    Imports the folder `release` if no real model is stored, or if the newest one is from an earlier release. Raises
    NoModel if the model `tag` is not stored or a stored file was changed, and the errors of import_model.
    """
    try:
        stored = find(tag)
    except AlteredModel:
        raise
    except NoModel:
        if tag is not None:
            raise
    else:
        if tag is not None or not stored.released:
            return stored.tag
    return import_model(release, released=True)


def _store_folder() -> Path:
    return Path(BentoMLContainer.model_store.get()._path)


def _move_into_store(made: Path, old: Path) -> None:
    """Move the folder of a model into the store, and an earlier folder of its version to `old`."""
    place = _store_folder() / NAME / made.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    made.rename(place)
    (place.parent / "latest").unlink(missing_ok=True)  # BentoML writes it again from the models there


def _find_newest(trained_on: str) -> StoredModel | None:
    models = [model for model in _readable_models() if model.info.labels.get("trained_on") == trained_on]
    return _to_stored_model(max(models, key=lambda model: model.creation_time)) if models else None


def _readable_models() -> Iterator[bentoml.Model]:
    """The readable stored models. BentoML's own list ends at the first torn one, which older code could leave."""
    for folder in sorted((_store_folder() / NAME).glob("*/")):
        with contextlib.suppress(Exception):  # BentoML's, a YAML parser's or a structure's
            yield bentoml.models.get(f"{NAME}:{folder.name}")


def _to_stored_model(model: bentoml.Model) -> StoredModel:
    card_sha256 = str(model.info.metadata.get(_CARD_SHA256, ""))
    return StoredModel(str(model.tag), Path(model.path), _RELEASED in model.info.labels, card_sha256)
