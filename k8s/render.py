"""`python -m k8s.render FOLDER`: renders the manifests with kubectl.

Every overlay is rendered alone, with each component, and with all. What an admin applies is rendered, too.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import yaml

HERE: Final = Path(__file__).parent
OVERLAYS: Final = sorted(path.name for path in (HERE / "overlays").iterdir())
# The canary comes last: it patches the object that scales, which another component may have added.
ADMIN_COMPONENTS: Final = ("quota",)
COMPONENTS: Final = sorted(
    {path.name for path in (HERE / "components").iterdir()} - set(ADMIN_COMPONENTS),
    key=lambda name: (name == "canary", name),
)
NEEDS: Final = {"dicom-node-monitoring": ("dicom-node",)}
"""Components that make sense only beside others."""
ALL: Final = tuple(name for name in COMPONENTS if name != "scale-to-zero")  # it replaces keda
COMBINATIONS: Final = [
    (overlay, chosen)
    for overlay in OVERLAYS
    for chosen in [(), *((*NEEDS.get(name, ()), name) for name in COMPONENTS), ALL]
]
"""Overlays and their components: the last one is the one that is tried."""
ADMIN_COMBINATIONS: Final = [(overlay, chosen) for overlay in OVERLAYS for chosen in [(), ADMIN_COMPONENTS]]


def render(overlay: str, components: tuple[str, ...] = (), source: Path = HERE, kind: str = "overlays") -> str:
    """Return the overlay's objects as YAML. The components are added as a user would add them.

    If `kind` is "admin", these are the objects that an admin applies before the overlay.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "k8s"
        for part in ("admin", "base", "overlays", "components"):
            shutil.copytree(source / part, copy / part)
        file = copy / kind / overlay / "kustomization.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content.setdefault("components", []).extend(f"../../components/{name}" for name in components)
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return subprocess.run(["kubectl", "kustomize", file.parent], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m k8s.render", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; its other *.yaml are removed")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    for overlay, components in COMBINATIONS:
        name = "all" if components == ALL else "".join(components[-1:])
        (folder / f"{'-'.join(filter(None, (overlay, name)))}.yaml").write_text(render(overlay, components), "utf-8")
    for overlay, components in ADMIN_COMBINATIONS:
        name = "-".join(("admin", overlay, *components))
        (folder / f"{name}.yaml").write_text(render(overlay, components, kind="admin"), "utf-8")


if __name__ == "__main__":
    main()
