"""Runs the measurements in a new process, which keeps metrics in files and writes a log, as a worker does."""

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Final

from chestct.card import ModelCard
from chestct.processes import SpawnedPool

Table = dict[str, dict[str, float]]
"""Microseconds an image by kind of request, then by step, from the inside to the connection."""

_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that prometheus_client reads when it is imported."""


def measure(card: ModelCard, rounds: int) -> Table:
    """Return the table. Each of its figures comes from so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_METRICS] = folder
        try:
            with SpawnedPool(1) as pool:
                return pool.submit(_measure_here, card, rounds, Path(folder) / "log").result()
        finally:
            del os.environ[_METRICS]


def _measure_here(card: ModelCard, rounds: int, log_file: Path) -> Table:
    from uvicorn import Config

    from benchmarks.steps import parts

    with asyncio.Runner(loop_factory=Config("", log_config=None).get_loop_factory()) as runner:
        return runner.run(parts.measure(card, rounds, log_file))
