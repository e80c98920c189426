"""The running node: receiver, worker and probes, from start to drain."""

import logging
import threading
import time
from typing import Final

from dicom_node.probes import Probes
from dicom_node.receive import Receiver
from dicom_node.score import Scorer
from dicom_node.send import sender
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from dicom_node.worker import Worker

LOG: Final = logging.getLogger(__name__)


class Node:
    """A node that runs from its creation on."""

    def __init__(self, settings: Settings) -> None:
        """Open the spool and the ports. Raises OSError."""
        self._settings = settings
        self._draining = threading.Event()
        self._stop = threading.Event()
        spool = Spool(settings.spool, settings.max_spool_bytes)
        worker = Worker(settings, spool, Scorer(settings), sender(settings))
        self._thread = threading.Thread(target=worker.run, args=(self._stop,), name="worker")
        self._probes = Probes(settings.http_host, settings.http_port, self._thread.is_alive, self._is_ready)
        try:
            self._receiver = Receiver(settings, spool)
        except OSError:
            self._probes.close()
            raise
        self._thread.start()
        LOG.info(
            "%s receives on port %d, metrics on port %d", settings.ae_title, self._receiver.port, self._probes.port
        )

    def drain(self) -> None:
        """Take no further associations, let the open ones end, finish the current step, and stop."""
        self._draining.set()
        self._receiver.stop_listening()
        end = time.monotonic() + self._settings.drain_seconds
        while self._receiver.open_associations and time.monotonic() < end:
            time.sleep(0.1)
        self._receiver.close()
        self._stop.set()
        self._thread.join()
        self._probes.close()
        LOG.info("stopped; what is in the spool is taken up at the next start")

    def _is_ready(self) -> bool:
        return self._thread.is_alive() and not self._draining.is_set()
