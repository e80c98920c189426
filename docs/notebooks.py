"""`python -m docs.notebooks [PROJECT]`: executes the notebooks on phantoms and stores them with what they show.

PROJECT is a folder in which every stage has run on phantoms: `.demo`, which `make demo` makes. A notebook records a
digest of its outputs. A test compares it, so that no other picture, such as one of a data set, is stored by mistake.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image

from pipeline.core.params import Params

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "notebooks"
WIDEST: Final = 800
"""Pixels of a side of a stored picture, at most."""
COLOURS: Final = 32
DIGEST: Final = "outputs_on_phantoms_sha256"
BAD_INPUT: Final = 2


def execute(notebook: Path, folder: Path, scratch: Path) -> dict[str, Any]:
    """Execute the notebook in `folder`, and return it with its outputs. `scratch` takes Jupyter's settings.

    Raises RuntimeError with the end of what the kernel said.
    """
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    environment = {**os.environ, **{name: str(scratch / name.lower()) for name in names}, "PYTHONPATH": str(folder)}
    program = Path(sys.executable).with_name("jupyter-execute")
    command = [str(program), "--startup_timeout=300", f"--output={scratch / notebook.stem}"]
    done = subprocess.run(
        [*command, str(folder / "notebooks" / notebook.name)],
        cwd=folder,
        env={**environment, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{notebook.name}: {done.stderr[-2000:]}")
    return dict(json.loads((scratch / notebook.name).read_text(encoding="utf-8")))


def stored(executed: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with small pictures and the digest of its outputs, and without messages of libraries."""
    for cell in executed["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = [small for output in cell["outputs"] if (small := _small(output))]
    executed["metadata"] = {
        "kernelspec": executed["metadata"]["kernelspec"],
        "language_info": {"name": "python"},
        DIGEST: digest_of(executed),
    }
    return executed


def digest_of(notebook: dict[str, Any]) -> str:
    """Return the SHA-256 of all outputs of the notebook."""
    outputs = [cell.get("outputs", []) for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def _small(output: dict[str, Any]) -> dict[str, Any] | None:
    """Return the output with a smaller picture, or None if it is a progress bar or a message of a library."""
    if output.get("name") == "stderr":
        return None
    if picture := output.get("data", {}).get("image/png"):
        output["data"] = {"image/png": _shrink("".join(picture)), "text/plain": ["a picture of phantoms"]}
        output["metadata"] = {}
    return output


def _shrink(picture: str) -> str:
    """Return a PNG in base64 of at most WIDEST x WIDEST pixels and COLOURS colours."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> int:
    """Return the exit code: 0, or BAD_INPUT with one line."""
    parser = argparse.ArgumentParser(prog="python -m docs.notebooks", description=__doc__)
    parser.add_argument("project", type=Path, nargs="?", default=Path(".demo"), help="default %(default)s")
    project = parser.parse_args().project.resolve()
    try:
        source = Params.read(project / "params.yaml").data.source
        if source != "synthetic":
            raise RuntimeError(
                f"{project} was trained on {source} images, and only phantoms may be stored; `make demo`"
            )
        with tempfile.TemporaryDirectory() as scratch:
            for notebook in sorted(FOLDER.glob("*.ipynb")):
                content = stored(execute(notebook, project, Path(scratch)))
                notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                print(f"{notebook.name}: {notebook.stat().st_size / 1000:.0f} kB")
    except Exception as error:  # noqa: BLE001 - one line for whatever is wrong with the project
        print(f"docs.notebooks: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
