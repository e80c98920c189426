"""The BentoML model store, where the pipeline and the service meet."""

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Final, NamedTuple

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from chestct.card import ModelCard

NAME: Final = "chestct"
GRAPH: Final = "model.onnx"
CARD: Final = "card.json"

_RELEASED: Final = "released"


class NoModel(LookupError):
    """The store holds no model that may be served; the message says what to do."""


class StoredModel(NamedTuple):
    tag: str
    folder: Path
    """Holds GRAPH and CARD."""
    released: bool = False
    """It came with the code, not from a training here."""

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    def read_card(self) -> ModelCard:
        return ModelCard.read(self.folder / CARD)


def import_model(folder: Path, *, released: bool = False) -> str:
    """Copy GRAPH and CARD of `folder` into the store with labels and lineage; returns the tag.

    `released`: it came with the code, and gives way to the model of a later release.

    Its version is the card's digest, so one model has one tag on every machine. Where it is the newest of its kind,
    real or synthetic, already, nothing is stored. The card is checked first, so nothing is stored that can't be served.
    Raises FileNotFoundError or pydantic's ValidationError.
    """
    card = ModelCard.read(folder / CARD)
    lineage = card.lineage
    labels = {
        "trained_on": "synthetic" if card.synthetic else "real",
        "backbone": lineage.backbone,
        "run_id": lineage.run_id,
        **({_RELEASED: "true"} if released else {}),
    }
    tag = f"{NAME}:{hashlib.sha256((folder / CARD).read_bytes()).hexdigest()[:16]}"
    newest = _newest(labels["trained_on"])
    if newest and newest.tag == tag:
        return tag
    with contextlib.suppress(NotFound):
        bentoml.models.delete(tag)  # stored anew, it is the newest
    with bentoml.models.create(tag, labels=labels, metadata=lineage.model_dump()) as model:
        for name in (GRAPH, CARD):
            shutil.copyfile(folder / name, model.path_of(name))
    return tag


def find(tag: str | None = None) -> StoredModel:
    """The model of this tag, or the newest one that was trained on real images.

    A model trained on phantoms is found only by its tag. Raises NoModel.
    """
    if tag is not None:
        try:
            model = bentoml.models.get(tag)
        except BentoMLException as error:
            raise NoModel(f"no model {tag!r} in the BentoML store; `bentoml models list` shows them all") from error
        return StoredModel(str(model.tag), Path(model.path))
    newest = _newest("real")
    if newest is None:
        raise NoModel("no model trained on real images in the BentoML store; `make serve` imports the released one")
    return newest


def _newest(trained_on: str) -> StoredModel | None:
    try:
        stored = bentoml.models.list(NAME)
    except NotFound:  # BentoML's word for a store that never held one
        return None
    models = [model for model in stored if model.info.labels.get("trained_on") == trained_on]
    if not models:
        return None
    newest = max(models, key=lambda model: model.creation_time)
    return StoredModel(str(newest.tag), Path(newest.path), _RELEASED in newest.info.labels)
