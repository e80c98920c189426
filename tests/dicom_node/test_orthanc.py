"""The whole loop with a real Orthanc: storescu, Orthanc, node, service, and the results by QIDO-RS."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.dicom_node.orthanc import Orthanc, orthanc
from tests.dicom_node.running import RunningNode
from tests.dicom_node.slices import ct_slice, written
from tests.dicom_node.tools import needs_orthanc, run
from tests.dicom_node.waiting import until

STUDY = "1.2.3"
COUNT = 64

Loop = Callable[[str], tuple[Orthanc, RunningNode]]


@pytest.fixture
def loop(tmp_path: Path, service: str) -> Iterator[Loop]:
    """Starts a node and an Orthanc that know each other. The argument is the way back: `dicom` or `http`."""
    with ExitStack() as stack:

        def start(way: str) -> tuple[Orthanc, RunningNode]:
            node = RunningNode(tmp_path, service, "dicom://X@127.0.0.1:1")
            pacs = stack.enter_context(orthanc(tmp_path / "orthanc", node.port))
            address = f"dicom://SENDER@127.0.0.1:{pacs.dicom}" if way == "dicom" else pacs.web
            node.environment["DICOM_NODE_RETURN_TO"] = address
            node.start()
            stack.callback(node.kill)
            return pacs, node

        yield start


@needs_orthanc
@pytest.mark.parametrize("way", ["dicom", "http"], ids=["C-STORE", "STOW-RS"])
def test_slices_sent_by_storescu_come_back_into_their_study(
    loop: Loop, tmp_path: Path, drawn: Callable[[str], NDArray[np.uint8]], way: str
) -> None:
    pacs, node = loop(way)
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(1, COUNT + 1):
        shown = drawn("class-0" if number == 40 else "class-2")
        (folder / f"{number}.dcm").write_bytes(written(ct_slice(shown, study=STUDY, number=number)))
    run("storescu", "-aet", "SENDER", "-aec", "SENDER", "127.0.0.1", str(pacs.dicom), "+sd", folder)
    until(lambda: [modality for modality, _ in pacs.series(STUDY)] == ["CT", "OT", "SR"])
    counts = {modality: len(pacs.instances(STUDY, uid)) for modality, uid in pacs.series(STUDY)}
    assert counts == {"CT": COUNT, "OT": 1, "SR": 1}
    until(lambda: node.metric("dicom_node_returned_total") == 1)
    assert node.metric('dicom_node_scored_total{outcome="accept"}') == COUNT
