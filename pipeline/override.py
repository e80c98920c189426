"""Quote a text of any characters for `dvc exp run -S`.

`python -m pipeline.override data.path "it's here"` prints `data.path='it\\'s here'`.
"""

import os
import re
import sys


def override(key: str, text: str) -> str:
    r"""Return `key='text'` in Hydra's grammar. Quotes, backslashes before them and OmegaConf's `${` are escaped."""
    text = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    text = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)
    return f"{key}='{text}'"


def main() -> None:
    if len(sys.argv) != 3:  # argparse would take a text such as --help for an option
        sys.exit("override: expected a key and a text: python -m pipeline.override KEY TEXT")
    sys.stdout.buffer.write(os.fsencode(override(*sys.argv[1:])))


if __name__ == "__main__":
    main()
