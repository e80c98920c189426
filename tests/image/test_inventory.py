"""The inventory reads an image from its archive, layer by layer."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from image.inventory import NoImage, main, read, write

DPKG = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

"""
GRAPH = b"graph"


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An image of two layers. The second hides a file, a folder, and the contents of an opaque folder."""
    below = {
        "var/lib/dpkg/status": DPKG,
        "usr/bin/cc": b"",
        "root/.cache/pip/wheel": b"",
        "opt/old": b"",
        "opt/keep/me": b"",
    }
    above = {
        "usr/bin/.wh.cc": b"",
        "root/.wh..cache": b"",
        "opt/.wh..wh..opq": b"",
        "opt/new": b"",
        "app/some_package-1.2.dist-info/METADATA": b"Metadata-Version: 2.1\nName: Some_Package\nVersion: 1.2\n",
        "app/models/chestct/abc/model.onnx": GRAPH,
    }
    config = {"architecture": "arm64", "config": {"Labels": {"org.opencontainers.image.revision": "5eed"}}}
    path = tmp_path / "image.tar"
    manifest = [{"Config": "config.json", "Layers": ["1.tar", "2.tar"]}]
    content = {"1.tar": tar(below), "2.tar": tar(above), "config.json": json.dumps(config).encode()}
    path.write_bytes(tar({**content, "manifest.json": json.dumps(manifest).encode()}))
    return path


def test_a_file_that_a_later_layer_hides_is_not_there(archive: Path) -> None:
    assert read(archive).files == (
        "app/models/chestct/abc/model.onnx",
        "app/some_package-1.2.dist-info/METADATA",
        "opt/new",
        "var/lib/dpkg/status",
    )


def test_the_bill_names_packages_of_both_kinds_and_the_model_by_its_digest(archive: Path, tmp_path: Path) -> None:
    write(read(archive), tmp_path)
    bill = json.loads((tmp_path / "image.cdx.json").read_text())
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert set(parts) == {"pkg:deb/debian/libc6@2.36-9?arch=amd64", "pkg:pypi/some-package@1.2", "chestct:abc"}
    (digest,) = parts["chestct:abc"]["hashes"]
    assert digest == {"alg": "SHA-256", "content": hashlib.sha256(GRAPH).hexdigest()}
    assert bill["metadata"]["component"]["version"] == "5eed"


def test_the_same_image_gives_the_same_bill(archive: Path, tmp_path: Path) -> None:
    bills = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(read(archive), tmp_path / name)
        bills.append((tmp_path / name / "image.cdx.json").read_text())
    assert bills[0] == bills[1]


def test_an_archive_without_an_image_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(tar({"a": b""}))
    with pytest.raises(NoImage):
        read(path)
    monkeypatch.setattr("sys.argv", ["inventory", str(path), str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "podman save" in line
