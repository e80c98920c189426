"""Fixtures of the DICOM node's tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.receive import Receiver
from dicom_node.settings import Settings
from dicom_node.spool import Spool
from tests.dicom_node import variables
from tests.dicom_node.pacs import Pacs
from tests.dicom_node.pacs import pacs as running_pacs
from tests.dicom_node.running import RunningNode
from tests.small_disk import SmallDisk, mount


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
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 128 KiB."""
    (tmp_path / "disk").mkdir()
    with mount(tmp_path / "disk", kilobytes=128) as disk:
        yield disk


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


@pytest.fixture
def service() -> str:
    """URL of the service with the tiny model."""
    return _variable(variables.SERVICE)


@pytest.fixture
def drawn() -> Callable[[str], NDArray[np.uint8]]:
    """Reads the grey levels of a drawn slice: `class-0` to `class-3` for the tiny model, `phantom-0` to `phantom-7`."""
    folder = Path(_variable(variables.SLICES))
    return lambda name: np.load(folder / f"{name}.npy")


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with running_pacs() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, service: str, pacs: Pacs) -> Iterator[Callable[..., RunningNode]]:
    """Starts nodes that return to `pacs`. The arguments are settings."""
    started: list[RunningNode] = []

    def start(**settings: Any) -> RunningNode:
        own = {"service": service, "return_to": pacs.address, **settings}
        started.append(RunningNode(tmp_path, own.pop("service"), own.pop("return_to"), **own))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()


def _variable(name: str) -> str:
    if name not in os.environ:
        pytest.fail("no service here: make test-node starts one")
    return os.environ[name]
