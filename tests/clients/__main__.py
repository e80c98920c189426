"""`make clients`: starts the real service with the tiny model and runs this folder's tests against it.

They run in .venv-clients, which has the clients and nothing of ours: what they know comes by environment variables.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from chestct.image import encode_png
from tests.graphs import tiny_picture
from tests.server import ROOT, import_tiny_model, serve

NORMAL = 2
PYTEST = "-m pytest -v --tb=short -p no:cacheprovider --noconftest -o filterwarnings=default"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "bentoml"
        image = Path(folder) / "slice.png"
        image.write_bytes(encode_png(tiny_picture(NORMAL)[:, :, 0]))
        with serve(home, import_tiny_model(home), CHESTCT_WORKERS="2") as server:
            known = {"HTTP": urlsplit(server.url).netloc, "GRPC": server.grpc, "VERSION": server.tag.partition(":")[2]}
            environment = {**os.environ, **known, "IMAGE": str(image)}
            command = [str(ROOT / ".venv-clients/bin/python"), *PYTEST.split()]
            # A process a file: each client registers protobuf messages of the same names.
            runs = [
                subprocess.run([*command, str(file)], cwd=ROOT, env=environment, check=False)
                for file in sorted(Path(__file__).parent.glob("test_*.py"))
            ]
    sys.exit(max(run.returncode for run in runs))


if __name__ == "__main__":
    main()
