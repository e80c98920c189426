"""Make sure that there is a model to serve.

`python -m serving.release` imports release/ where the store has no real model, or none but an earlier release.
"""

import sys
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chestct import store
from chestct.digests import Altered
from serving.settings import Settings, SettingsError

RELEASE: Final = Path(__file__).parents[1] / "release"
BAD_INPUT: Final = 2


def ensure_model(tag: str | None, release: Path) -> str:
    """The tag of the model that the service will answer with.

    `release` is imported where no real one is stored, and where the newest is another release: of the code before it
    was updated. Raises chestct.store.NoModel where `tag` names a model that is not in the store or a stored file was
    changed, and what import_model raises.
    """
    try:
        stored = store.find(tag)
    except store.AlteredModel:
        raise
    except store.NoModel:
        if tag is not None:
            raise
    else:
        if tag is not None or not stored.released:
            return stored.tag
    return store.import_model(release, released=True)


def main() -> None:
    """Print the tag; exit with BAD_INPUT and one line where there is none."""
    try:
        print(ensure_model(Settings.read().model, RELEASE))
    except (SettingsError, store.NoModel, Altered, OSError, ValidationError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
