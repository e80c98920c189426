"""`make test-node`: starts the real service with the tiny model and runs this folder's tests beside it.

They run in .venv-node, which has the node and nothing that serves or trains. Environment variables tell them where the
service is and where the drawn slices are.
"""

import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from load_tests.images import phantom
from tests.dicom_node.variables import SERVICE, SLICES
from tests.graphs import tiny_picture
from tests.server import ROOT, import_tiny_model, serve

PHANTOMS = 8
PYTEST = ("-m", "pytest", "--confcutdir=tests/dicom_node", "-p", "no:cacheprovider")
QUIET = ("-W", "ignore::pytest.PytestUnraisableExceptionWarning")


def draw(folder: Path) -> None:
    """Write the grey levels of slices as .npy files: one of each class for the tiny model, and phantoms."""
    for label in range(4):
        np.save(folder / f"class-{label}.npy", tiny_picture(label, 256)[:, :, 0])
    for seed in range(PHANTOMS):
        picture = Image.open(BytesIO(phantom(seed))).convert("L")
        np.save(folder / f"phantom-{seed}.npy", np.asarray(picture))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "bentoml"
        draw(Path(folder))
        with serve(home, import_tiny_model(home), CHESTCT_WORKERS="2") as server:
            environment = {**os.environ, SERVICE: server.url, SLICES: folder}
            command = [str(ROOT / ".venv-node/bin/python"), *PYTEST, *QUIET, *(sys.argv[1:] or ["tests/dicom_node"])]
            done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
