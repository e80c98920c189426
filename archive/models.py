"""Finds the model: one of the BentoML store, a folder, the bento that this code is in, or the released one."""

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from chestct.card import ModelCard
from chestct.file_errors import CannotGoOn

ROOT: Final = Path(__file__).parents[1]
"""The clone, or the code in a bento."""
RELEASE: Final = ROOT / "release"


class Model(NamedTuple):
    """A model whose files were checked by their digests."""

    tag: str
    graph: Path
    card: ModelCard


def find(name: str | None) -> Model:
    """The model of this tag or in this folder; by default the bento's, or the one that `make serve` would serve.

    Raises CannotGoOn if there is none, or if its files were changed.
    """
    from chestct import digests, store  # BentoML takes half a second, and the workers do without

    folder = Path(name) if name and Path(name).is_dir() else _find_packed() if name is None else None
    try:
        if folder:
            card = ModelCard.read(folder / store.CARD)
            digests.check(folder / store.GRAPH, card.lineage.model_sha256)
            return Model(store.tag_of(folder / store.CARD), folder / store.GRAPH, card)
        stored = store.find(store.ensure_model(name, RELEASE))
        return Model(stored.tag, stored.graph, stored.read_card())
    except (store.NoModel, digests.Altered, OSError, ValidationError) as error:
        raise CannotGoOn(f"no model: {' '.join(str(error).split())}") from error


def find_planned(tag: str, name: str | None) -> Model:
    """The model that a plan names by its tag. `name` says where it is, as for `find`. Raises CannotGoOn."""
    model = find(name)
    if model.tag != tag and name is None:
        return find(tag)
    if model.tag != tag:
        raise CannotGoOn(f"the plan is for the model {tag}, and {name} is {model.tag}")
    return model


def _find_packed() -> Path | None:
    """The folder of the model in the bento that this code is in; None in a clone."""
    bento = ROOT.parent
    found = sorted((bento / "models").glob("chestct/*/card.json")) if (bento / "bento.yaml").is_file() else []
    return found[0].parent if found else None
