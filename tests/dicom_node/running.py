"""Runs the node as a process, sends to it, and asks its probes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import requests
from pydicom import FileDataset, uid
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from tests.dicom_node.waiting import until
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class RunningNode:
    """A node in a process of its own. Its settings stay when it is started again."""

    def __init__(self, folder: Path, service: str, return_to: str, **settings: Any) -> None:
        self.port, self.http = free_ports(2)
        self.spool, self.log = folder / "spool", folder / "node.log"
        own = {
            "SPOOL": self.spool,
            "CALLERS": "SENDER",
            "SERVICE": service,
            "RETURN_TO": return_to,
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": self.http,
            "QUIET_SECONDS": 5,  # with less, a pause of a busy machine would end a series
            **{name.upper(): value for name, value in settings.items()},
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE_")}
        self.environment = {**inherited, **{f"DICOM_NODE_{name}": str(value) for name, value in own.items()}}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "dicom_node"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        if ready:
            until(self.is_ready)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dicom_node", *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def is_ready(self) -> bool:
        return self.status("/readyz") == 200

    def status(self, path: str) -> int:
        """The status of a probe; 0 if nobody answers."""
        try:
            return requests.get(f"http://127.0.0.1:{self.http}{path}", timeout=PATIENCE).status_code
        except requests.ConnectionError:
            return 0

    def metric(self, line: str) -> float:
        """The value of the metric that is written like this, such as `name{label="value"}`; 0 if there is none."""
        lines = [one.rpartition(" ") for one in self.metrics().splitlines()]
        return next((float(value) for name, _, value in lines if name == line), 0.0)

    def metrics(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.http}/metrics", timeout=PATIENCE).text

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop the node as Kubernetes does. Returns its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def send(self, files: Iterable[FileDataset]) -> list[int]:
        """Send files in one association. Returns their statuses, without those that got no answer."""
        entity = AE("SENDER")
        entity.add_requested_context(CTImageStorage, uid.ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", self.port, ae_title="CHESTCT")
        statuses = []
        for file in files if association.is_established else ():
            if not association.is_established:
                break
            statuses.append(association.send_c_store(file).get("Status"))
        if association.is_established:
            association.release()
        return [status for status in statuses if status is not None]
