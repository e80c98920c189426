"""Makes sure that there is a model to serve.

`python -m serving.ensure_model` imports release/ if the store has no real model, or only one of another release.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chestct import store
from chestct.digests import Altered
from serving.settings import Settings, SettingsError

RELEASE: Final = Path(__file__).parents[1] / "release"
BAD_INPUT: Final = 2


def main() -> None:
    """Print the tag, or exit with BAD_INPUT and one line."""
    try:
        print(store.ensure_model(Settings.read().model, RELEASE))
    except (SettingsError, store.NoModel, Altered, OSError, ValidationError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m serving.ensure_model", description=__doc__).parse_args()
    main()
