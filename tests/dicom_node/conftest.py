"""Fixtures of the DICOM node's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.receive import Receiver
from dicom_node.settings import Settings
from dicom_node.spool import Spool


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings of a node on free ports of the loopback. The arguments replace them."""

    def make(**changes: Any) -> Settings:
        values = {
            "spool": tmp_path / "spool",
            "callers": "SENDER",
            "return_to": "dicom://PACS@127.0.0.1:11113",
            "host": "127.0.0.1",
            "port": 0,
            "http_host": "127.0.0.1",
            "http_port": 0,
        }
        return Settings(**{**values, **changes})

    return make


@pytest.fixture
def receiver(settings: Callable[..., Settings]) -> Iterator[Callable[..., tuple[Receiver, Spool]]]:
    """Starts receivers with a spool. The arguments replace settings."""
    running: list[Receiver] = []

    def start(**changes: Any) -> tuple[Receiver, Spool]:
        own = settings(**changes)
        spool = Spool(own.spool, own.max_spool_bytes)
        running.append(Receiver(own, spool))
        return running[-1], spool

    yield start
    for one in running:
        one.stop_listening()
        one.close()
