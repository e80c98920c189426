"""Runs Orthanc with its DICOMweb plugin, as Debian installs them."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.dicom_node.running import free_ports
from tests.dicom_node.tools import DICOMWEB, ORTHANC
from tests.dicom_node.waiting import until
from tests.waiting import PATIENCE

FORWARD = """
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/chestct/store', seriesId)
  end
end
"""
"""Sends each CT series to the node when it is stable: the script of docs/how-to/connect-a-pacs.md."""


class Orthanc:
    """A running Orthanc."""

    def __init__(self, dicom: int, http: int) -> None:
        self.dicom = dicom
        self.web = f"http://127.0.0.1:{http}/dicom-web"
        self._url = f"http://127.0.0.1:{http}"

    def is_up(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self._url}/system", timeout=PATIENCE).ok
        return False

    def series(self, study: str) -> list[tuple[str, str]]:
        """Modality and Series Instance UID of each series of a study, by QIDO-RS."""
        query = {"StudyInstanceUID": study, "includefield": "Modality"}
        answer = requests.get(f"{self.web}/series", params=query, timeout=PATIENCE)
        return sorted((_value(one, "00080060"), _value(one, "0020000E")) for one in answer.json())

    def instances(self, study: str, series: str) -> list[str]:
        """SOP Instance UIDs of a series, by QIDO-RS."""
        answer = requests.get(f"{self.web}/studies/{study}/series/{series}/instances", timeout=PATIENCE)
        return sorted(_value(one, "00080018") for one in answer.json())


def _value(item: dict[str, Any], tag: str) -> str:
    return str(item[tag]["Value"][0])


@contextlib.contextmanager
def orthanc(folder: Path, node: int) -> Iterator[Orthanc]:
    """Run Orthanc with its files in `folder`. It sends CT series to the node on this port of the loopback."""
    dicom, http = free_ports(2)
    folder.mkdir()
    (folder / "forward.lua").write_text(FORWARD)
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "SENDER",
        "Plugins": [str(DICOMWEB)],
        "DicomWeb": {"Enable": True},
        "DicomModalities": {"chestct": ["CHESTCT", "127.0.0.1", node]},
        "LuaScripts": [str(folder / "forward.lua")],
        "StableAge": 5,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    assert ORTHANC is not None
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            running = Orthanc(dicom, http)
            until(running.is_up)
            yield running
        finally:
            process.terminate()
            process.wait(PATIENCE)
