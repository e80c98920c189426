"""`python -m image.inventory ARCHIVE FOLDER`: lists the contents of an image, for any architecture.

Reads the image's archive, so the image does not run. Writes FOLDER/image.txt, the path of every file, and
FOLDER/image.cdx.json, a CycloneDX bill of materials: the Debian and Python packages, and the model with its digest.

No ready-made tool gives all of this. cyclonedx-py runs the interpreter that it describes, and lists neither Debian
packages nor the model. syft finds no model and lists packages that were removed.
"""

import argparse
import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import IO, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

BAD_INPUT: Final = 2
DEBIAN: Final = "var/lib/dpkg/status"
MODEL: Final = "/model.onnx"
WHITEOUT: Final = ".wh."


class NoImage(ValueError):
    """The archive holds no image. The message says what is expected."""


class Image(NamedTuple):
    """Contents of an image."""

    labels: dict[str, str]
    architecture: str
    files: tuple[str, ...]
    """Sorted paths without the leading slash; no folders."""
    contents: dict[str, bytes]
    """Contents of the package databases and of the model, by path."""


def read(archive: Path) -> Image:
    """Read the archive that `podman save` or `docker save` wrote. Raises NoImage."""
    try:
        with tarfile.open(archive) as tar:
            (manifest,) = json.load(_open(tar, "manifest.json"))
            config = json.load(_open(tar, manifest["Config"]))
            files: dict[str, bytes | None] = {}
            for layer in manifest["Layers"]:
                with tarfile.open(fileobj=_open(tar, layer)) as content:
                    _apply(content, files)
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise NoImage(f"{archive}: expected one image as podman save or docker save writes it: {error}") from error
    return Image(
        labels=config["config"].get("Labels") or {},
        architecture=config["architecture"],
        files=tuple(sorted(files)),
        contents={path: data for path, data in sorted(files.items()) if data is not None},
    )


def _open(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file


def _apply(layer: tarfile.TarFile, files: dict[str, bytes | None]) -> None:
    """Apply a layer to the files of the layers below: remove what it hides, add what it holds."""
    for member in layer:
        path = member.name.removeprefix("./").strip("/")
        folder, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            hidden = f"{folder}/{name.removeprefix(WHITEOUT)}".strip("/")
            opaque = name == f"{WHITEOUT}{WHITEOUT}.opq"
            for other in [p for p in files if p == hidden or p.startswith(f"{folder if opaque else hidden}/")]:
                del files[other]
        elif not member.isdir():
            wanted = path == DEBIAN or path.endswith((".dist-info/METADATA", MODEL))
            files[path] = layer.extractfile(member).read() if wanted and member.isfile() else None  # type: ignore[union-attr]


def bill(image: Image) -> Bom:
    """Return the bill of materials. The same image gives the same bill, so it has no timestamp."""
    labels = image.labels
    subject = Component(
        type=ComponentType.CONTAINER,
        bom_ref="image",
        name=labels.get("org.opencontainers.image.title", "chestct"),
        version=labels.get("org.opencontainers.image.revision"),
        properties=[Property(name=f"label:{name}", value=value) for name, value in sorted(labels.items())],
    )
    components = sorted({*_debian(image), *_python(image), *_models(image)})
    bom = Bom(components=components)
    bom.metadata.component = subject
    bom.metadata.timestamp = None  # type: ignore[assignment]  # leaves it out
    bom.metadata.properties.add(Property(name="architecture", value=image.architecture))
    bom.serial_number = uuid5(NAMESPACE_URL, json.dumps([labels, image.architecture, image.files], sort_keys=True))
    bom.register_dependency(subject, components)
    return bom


def _debian(image: Image) -> Iterator[Component]:
    for block in image.contents.get(DEBIAN, b"").decode().split("\n\n"):
        fields = Parser().parsestr(block)
        if "installed" in str(fields["Status"]).split():
            name, version = fields["Package"], fields["Version"]
            yield _library(name, PackageURL("deb", "debian", name, version, {"arch": fields["Architecture"]}))


def _python(image: Image) -> Iterator[Component]:
    for path, data in image.contents.items():
        if path.endswith("METADATA"):
            fields = Parser().parsestr(data.decode())
            yield _library(fields["Name"], PackageURL("pypi", None, fields["Name"], fields["Version"]))


def _library(name: str, purl: PackageURL) -> Component:
    return Component(type=ComponentType.LIBRARY, bom_ref=str(purl), name=name, version=purl.version, purl=purl)


def _models(image: Image) -> Iterator[Component]:
    for path, data in image.contents.items():
        if path.endswith(MODEL):
            *_, name, version, _ = path.split("/")
            digest = HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(data).hexdigest())
            tag = f"{name}:{version}"
            kind = ComponentType.MACHINE_LEARNING_MODEL
            yield Component(type=kind, bom_ref=tag, name=name, version=version, hashes=[digest])


def write(image: Image, folder: Path) -> None:
    """Write image.cdx.json and image.txt. Raises ValueError if the bill does not match CycloneDX's schema."""
    text = make_outputter(bill(image), OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill of materials is not valid: {problem}")
    (folder / "image.cdx.json").write_text(text, encoding="utf-8")
    (folder / "image.txt").write_text("".join(f"{path}\n" for path in image.files), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m image.inventory", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        image = read(options.archive)
    except NoImage as error:
        print(f"inventory: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    write(image, options.folder)


if __name__ == "__main__":
    main()
