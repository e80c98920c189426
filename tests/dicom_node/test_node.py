"""The node as a process, from a sender to a PACS, with the real service between."""

import random
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from tests.dicom_node.forwarder import Forwarder
from tests.dicom_node.pacs import Pacs
from tests.dicom_node.running import RunningNode, free_ports
from tests.dicom_node.slices import PATIENT_ID, ct_slice, levels
from tests.dicom_node.waiting import until

Drawn = Callable[[str], NDArray[np.uint8]]
Start = Callable[..., RunningNode]


def series(drawn: Drawn, *labels: int, uid: str = "1.2.3.4", first: int = 1) -> list[FileDataset]:
    """Return slices of these classes."""
    return [
        ct_slice(drawn(f"class-{label}"), series=uid, number=number, InstanceNumber=number)
        for number, label in enumerate(labels, first)
    ]


def referenced(report: Dataset) -> list[str]:
    """Return the SOP Instance UIDs of the slices that the report is about, in its order."""
    (measurements,) = [item for item in report.ContentSequence if meaning(item) == "Imaging Measurements"]
    images = [
        item
        for group in measurements.ContentSequence
        for item in group.ContentSequence
        if "ReferencedSOPSequence" in item
    ]
    return [image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in images]


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def test_a_series_comes_back_as_a_report_and_a_capture_in_its_study(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    assert running.send(series(drawn, 2, 0, 2)) == [0x0000] * 3
    (report,) = pacs.wait_for(1)
    (capture,) = pacs.objects("OT")
    assert report.StudyInstanceUID == capture.StudyInstanceUID == "1.2.3"
    assert report.PatientID == capture.PatientID == PATIENT_ID
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert referenced(report) == ["1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"]
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.2"  # the one that shows a cancer
    until(lambda: running.metric("dicom_node_returned_total") == 1)
    assert running.metric('dicom_node_received_total{outcome="stored"}') == 3
    assert running.metric("dicom_node_complete_total") == 1
    assert running.metric('dicom_node_scored_total{outcome="accept"}') == 3
    until(lambda: running.metric("dicom_node_spool_series") == 0)
    assert running.metric("dicom_node_spool_bytes") > 0


def test_late_slices_make_a_new_revision_that_names_the_one_before(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    running.send(series(drawn, 2, 2))
    (first,) = pacs.wait_for(1)
    running.send(series(drawn, 2, 2, 0))  # the first two again, and a third
    reports = pacs.wait_for(2)
    assert [report.InstanceNumber for report in reports] == [1, 2]
    assert referenced(reports[1]) == ["1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"]
    assert reports[1].SeriesInstanceUID == first.SeriesInstanceUID
    (study,) = reports[1].PredecessorDocumentsSequence
    (before,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert before.ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_a_repeat_of_a_removed_series_gives_the_same_objects_again(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node(keep_seconds=0)
    for copies in (1, 2):
        running.send(series(drawn, 0, 2))
        until(lambda copies=copies: [len(files) for files in pacs.files.values()] == [copies] * 2)  # type: ignore[misc]
        until(lambda: not list((running.spool / "series").iterdir()))


def test_series_of_one_association_are_kept_apart(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    mixed = [
        file for pair in zip(series(drawn, 2, 2), series(drawn, 0, 0, uid="1.2.3.5"), strict=True) for file in pair
    ]
    assert running.send(mixed) == [0x0000] * 4
    reports = pacs.wait_for(2)
    assert sorted(map(referenced, reports)) == [["1.2.3.4.1", "1.2.3.4.2"], ["1.2.3.5.1", "1.2.3.5.2"]]


def test_a_slice_that_the_service_cannot_read_makes_the_report_partial(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    odd = ct_slice(drawn("class-2"), number=2, RescaleSlope=None)
    running.send([*series(drawn, 2), odd])
    (report,) = pacs.wait_for(1)
    assert report.CompletionFlag == "PARTIAL"
    texts = [str(item.get("TextValue")) for item in report.ContentSequence]
    assert "1 of 2 were scored." in texts
    assert running.metric('dicom_node_scored_total{outcome="error"}') == 1


def test_localizers_alone_give_no_result_and_no_failure(node: Start, pacs: Pacs) -> None:
    running = node()
    running.send([ct_slice(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])])
    until(lambda: running.metric("dicom_node_complete_total") == 1)
    until(lambda: running.metric("dicom_node_spool_series") == 0)
    assert pacs.files == {}
    assert running.metric("dicom_node_dead_letters") == 0


def test_a_service_that_is_down_is_waited_for(node: Start, pacs: Pacs, drawn: Drawn, service: str) -> None:
    (port,) = free_ports(1)
    running = node(service=f"http://127.0.0.1:{port}", longest_wait_seconds=1)
    running.send(series(drawn, 2))
    until(lambda: running.metric('dicom_node_failed_total{step="score"}') >= 2)
    assert pacs.files == {}
    with Forwarder(port, service):
        pacs.wait_for(1)
    assert "the service can't be reached: ConnectionError" in running.log.read_text()


def test_a_result_that_the_pacs_refuses_is_a_dead_letter_until_a_command(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    pacs.status = 0xC123
    running.send(series(drawn, 2))
    until(lambda: running.metric("dicom_node_dead_letters") == 1)
    listed = running.command("dead").stdout
    key, _, reason = listed.partition("  ")
    assert reason == "the PACS refuses a result: status C123\n"
    assert f"try again with: {sys.executable} -m dicom_node retry {key}\n" in running.log.read_text()
    assert list((running.spool / "dead" / key).glob("slices/*.dcm"))
    pacs.status = 0x0000
    assert running.command("retry", key).stdout == f"{key} is taken up again\n"
    pacs.wait_for(1)
    until(lambda: running.metric("dicom_node_dead_letters") == 0)
    again = running.command("retry", key)
    assert (again.returncode, again.stderr) == (
        2,
        f"error: there is no dead letter {key}; `python -m dicom_node dead` lists them\n",
    )


def test_a_pacs_without_room_is_asked_again(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node(longest_wait_seconds=1)
    pacs.status = 0xA700
    running.send(series(drawn, 2))
    until(lambda: running.metric('dicom_node_failed_total{step="send"}') >= 2)
    pacs.status = 0x0000
    pacs.wait_for(1)


def test_a_drain_ends_open_associations_well_and_the_next_start_goes_on(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.extend(running.send(slowly(series(drawn, 2, 2, 2, 2), running))))
    sender.start()
    until(lambda: running.metric('dicom_node_received_total{outcome="stored"}') >= 1)
    assert running.stop() == 0
    sender.join()
    assert statuses == [0x0000] * 4
    assert pacs.files == {}
    running.start()
    (report,) = pacs.wait_for(1)
    assert len(referenced(report)) == 4


def slowly(files: list[FileDataset], running: RunningNode) -> Any:
    """Yield the files, and hold all but the first back until the node drains."""
    for number, file in enumerate(files):
        if number == 1:
            until(lambda: running.status("/readyz") in (503, 0))
        yield file


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The PN component")  # of the odd header
def test_no_line_and_no_metric_names_the_patient(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node()
    odd = ct_slice(drawn("class-2"), number=3, PatientBirthDate="SECRET-DATE", PatientName="Secret^" + "x" * 80)
    running.send([*series(drawn, 0, 2), odd, ct_slice(levels(), number=4, Modality="MR")])
    until(lambda: "is returned: revision 1" in running.log.read_text())  # shortly after the PACS has it
    log = running.log.read_text()
    assert not re.search(r"secret|1\.2\.3", log + running.metrics(), re.IGNORECASE)
    kept = [str(path.relative_to(running.spool)) for path in running.spool.rglob("*")]
    assert not [path for path in kept if re.search(r"secret|1\.2\.3", path, re.IGNORECASE)]


@pytest.mark.parametrize("missing", ["SPOOL", "CALLERS", "RETURN_TO"])
def test_a_node_that_cannot_start_says_why_in_one_line(tmp_path: Path, missing: str) -> None:
    running = RunningNode(tmp_path, "http://localhost:1", "dicom://PACS@127.0.0.1:1")
    del running.environment[f"DICOM_NODE_{missing}"]
    done = running.command()
    assert (done.returncode, done.stderr) == (2, f"error: DICOM_NODE_{missing}: Field required\n")


def test_a_port_that_is_taken_is_named_in_one_line(node: Start, tmp_path: Path) -> None:
    first = node()
    second = RunningNode(tmp_path / "other", "http://localhost:1", "dicom://PACS@127.0.0.1:1")
    second.environment["DICOM_NODE_PORT"] = str(first.port)
    done = second.command()
    assert (done.returncode, done.stderr) == (2, "error: can't start: Address already in use\n")


def test_a_spool_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    done = RunningNode(tmp_path, "http://localhost:1", "dicom://PACS@127.0.0.1:1").command()
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't start: ")
    assert done.stderr.endswith(f": {tmp_path / 'spool'}/incoming\n")


def test_what_is_acknowledged_survives_ten_kills_and_comes_back_once(node: Start, pacs: Pacs, drawn: Drawn) -> None:
    running = node(longest_wait_seconds=1)
    sets = [series(drawn, 0, 2, 2, 2, uid=f"1.2.3.{number}") for number in range(10)]
    acknowledged: list[str] = []

    def send() -> None:
        chosen = random.Random(7)
        for files in sets:
            for file in files:
                while running.send([file]) != [0x0000]:
                    pass
                acknowledged.append(file.SOPInstanceUID)
                threading.Event().wait(chosen.uniform(0, 0.4))

    sender = threading.Thread(target=send)
    sender.start()
    moments = random.Random(11)
    for _ in range(10):
        threading.Event().wait(moments.uniform(0, 3))
        running.kill()
        running.start()
    sender.join()
    reports = pacs.wait_for(10)
    until(lambda: running.metric("dicom_node_spool_series") == 0)
    assert len(acknowledged) == 40
    assert sorted(uid for report in pacs.objects("SR") for uid in referenced(report)) == sorted(acknowledged)
    assert len({report.SeriesInstanceUID for report in reports}) == len(pacs.objects("SR")) == 10
    assert len(pacs.objects("OT")) == 10
    assert all(len(set(copies)) == 1 for copies in pacs.files.values())  # a repeat is the same file
