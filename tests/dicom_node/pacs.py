"""A PACS for the tests: a real C-STORE SCP that keeps what it gets, and can refuse it."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pydicom import FileDataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from tests.dicom_node.waiting import until


class Pacs:
    """What has arrived. `status` is what each object is answered with."""

    def __init__(self) -> None:
        self.status = 0x0000
        self.files: dict[str, list[bytes]] = defaultdict(list)
        """Each copy that came, by SOP Instance UID."""
        self._lock = threading.Lock()
        entity = AE("PACS")
        for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            entity.add_supported_context(sop_class)
        self._entity = entity
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.port: int = self._server.server_address[1]

    @property
    def address(self) -> str:
        return f"dicom://PACS@127.0.0.1:{self.port}"

    def _store(self, event: Any) -> int:
        if self.status == 0x0000:
            with self._lock:
                self.files[event.request.AffectedSOPInstanceUID].append(event.encoded_dataset(include_meta=False))
        return self.status

    def objects(self, modality: str) -> list[FileDataset]:
        """The objects of this modality, one a UID, in the order of their arrival."""
        with self._lock:
            first = [copies[0] for copies in self.files.values()]
        read = [dcmread(BytesIO(data), force=True) for data in first]
        return [one for one in read if one.Modality == modality]

    def wait_for(self, reports: int) -> list[FileDataset]:
        """Return the reports when there are this many, each with its capture."""
        until(lambda: len(self.objects("SR")) >= reports and len(self.objects("OT")) >= reports)
        return self.objects("SR")

    def close(self) -> None:
        self._entity.shutdown()


@contextlib.contextmanager
def pacs() -> Iterator[Pacs]:
    running = Pacs()
    try:
        yield running
    finally:
        running.close()
