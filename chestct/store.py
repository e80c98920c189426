"""The BentoML model store, where the pipeline and the service meet.

A model's version is the beginning of its card's SHA-256, and the card holds the graph's. So a tag stands for every byte
that is served, also in a store from before digests were checked.
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
    """The store holds no model that may be served; the message says what to do."""


class AlteredModel(NoModel):
    """A stored file is not the one that was stored; the message names both digests and says what to do."""


class StoredModel(NamedTuple):
    tag: str
    folder: Path
    """Holds GRAPH and CARD."""
    released: bool = False
    """It came with the code, not from a training here."""
    card_sha256: str = ""
    """As it was when the model was stored; empty in a store from before it was recorded, where the tag has to do."""

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    def read_card(self) -> ModelCard:
        """Raises NoModel for a card that other code has written and this can't read."""
        try:
            return ModelCard.read(self.folder / CARD)
        except ValidationError as error:
            raise NoModel(f"{self.tag}: this version can't read its card: {' '.join(str(error).split())}") from error

    def verify(self) -> None:
        """Hold card and graph to the digests that they were stored with; takes milliseconds. Raises AlteredModel."""
        version, card = self.tag.partition(":")[2], self.folder / CARD
        try:
            digests.check(card, self.card_sha256 or version)
            digests.check(card, version)
            digests.check(self.graph, json.loads(card.read_bytes())["lineage"]["model_sha256"])
        except (digests.Altered, OSError) as error:
            raise AlteredModel(
                f"{self.tag} is not served: {error}; `rm -r {shlex.quote(str(self.folder))}`, then `make serve` stores "
                "the released model anew, and `make store` the one of a training; build a bento anew"
            ) from error


def import_model(folder: Path, *, released: bool = False) -> str:
    """Copy GRAPH and CARD of `folder` into the store with labels and lineage; returns the tag.

    `released`: it came with the code, and gives way to the model of a later release.

    Its version is the card's digest, so one model has one tag on every machine. Where it is the newest of its kind,
    real or synthetic, already, nothing is stored. Card and graph are checked first, by SHA256SUMS where it is there (a
    released model has it) and by each other, so nothing is stored that can't be served; killed at any moment, the store
    holds the whole model or nothing of it. Raises OSError, pydantic's ValidationError or digests.Altered.
    """
    if released or (folder / digests.SUMS).exists():
        digests.check_sums(folder, GRAPH, CARD)
    card = ModelCard.read(folder / CARD)
    lineage = card.lineage
    digests.check(folder / GRAPH, lineage.model_sha256)
    card_sha256 = digests.sha256_of(folder / CARD)
    labels = {
        "trained_on": "synthetic" if card.synthetic else "real",
        "backbone": lineage.backbone,
        "run_id": lineage.run_id,
        **({_RELEASED: "true"} if released else {}),
    }
    tag = f"{NAME}:{card_sha256[:_VERSION_DIGITS]}"
    newest = _newest(labels["trained_on"])
    if newest and newest.tag == tag:
        with contextlib.suppress(AlteredModel):
            newest.verify()
            return tag
    with TemporaryDirectory(prefix="import-", dir=_store_folder().parent) as scratch:
        metadata = {**lineage.model_dump(), _CARD_SHA256: card_sha256}
        with bentoml.models.create(tag, labels=labels, metadata=metadata, _model_store=ModelStore(scratch)) as model:
            for name in (GRAPH, CARD):
                shutil.copyfile(folder / name, model.path_of(name))
        made = StoredModel(tag, Path(scratch, *tag.split(":")), card_sha256=card_sha256)
        made.verify()
        _put(made.folder, Path(scratch, "old"))
    return tag


def find(tag: str | None = None) -> StoredModel:
    """The model of this tag, or the newest one that was trained on real images; its digests are checked.

    A model trained on phantoms is found only by its tag. Raises NoModel.
    """
    if tag is not None:
        try:
            found = _stored(bentoml.models.get(tag))
        except Exception as error:  # BentoML's, or a parser's where its file is torn
            raise NoModel(f"no model {tag!r} in the BentoML store; `bentoml models list` shows them all") from error
    else:
        newest = _newest("real")
        if newest is None:
            raise NoModel("no model trained on real images in the BentoML store; `make serve` imports the released one")
        found = newest
    found.verify()
    return found


def _store_folder() -> Path:
    return Path(BentoMLContainer.model_store.get()._path)


def _put(made: Path, old: Path) -> None:
    """Move the folder of a whole model into the store, and what is there of that version to `old`."""
    place = _store_folder() / NAME / made.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    made.rename(place)
    (place.parent / "latest").unlink(missing_ok=True)  # BentoML writes it anew, by what is there


def _newest(trained_on: str) -> StoredModel | None:
    models = [model for model in _readable() if model.info.labels.get("trained_on") == trained_on]
    return _stored(max(models, key=lambda model: model.creation_time)) if models else None


def _readable() -> Iterator[bentoml.Model]:
    """The stored models; BentoML's own list ends at the first part of one, as a killed import of old code left it."""
    for folder in sorted((_store_folder() / NAME).glob("*/")):
        with contextlib.suppress(Exception):  # BentoML's, a YAML parser's or a structure's
            yield bentoml.models.get(f"{NAME}:{folder.name}")


def _stored(model: bentoml.Model) -> StoredModel:
    card_sha256 = str(model.info.metadata.get(_CARD_SHA256, ""))
    return StoredModel(str(model.tag), Path(model.path), _RELEASED in model.info.labels, card_sha256)
