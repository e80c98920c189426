"""Makes the objects of a revision as DICOM files."""

import warnings
from io import BytesIO

from pydicom import Dataset, dcmread

from dicom_node.capture import make_capture
from dicom_node.report import make_report
from dicom_node.returned import Identity, completed
from dicom_node.revisions import OBJECTS, RevisionFolder
from dicom_node.score import Result


def make_objects(folder: RevisionFolder, result: Result) -> dict[str, bytes]:
    """Return the files to return, by name: the report, and the capture if a slice was scored."""
    revision = folder.read()
    headers = {
        one.name: completed(dcmread(folder.slice_path(one.name), stop_before_pixels=True))
        for one in revision.choice.slices
    }
    identity = Identity.of(next(iter(headers.values())), revision.number, revision.names, result.model)
    previous = folder.report_before()
    before = None if previous is None else dcmread(previous)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's and highdicom's quote the header
        made: dict[str, Dataset] = {
            OBJECTS[0]: make_report(identity, result, revision.choice.rule, list(headers.values()), before)
        }
        if result.explanation is not None:
            top = headers[result.explanation.name]
            made[OBJECTS[1]] = make_capture(identity, result, result.explanation, top)
        return {name: _written(dataset) for name, dataset in made.items()}


def _written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
