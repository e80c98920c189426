"""What a worker does after it is ready: it compiles the other graphs."""

import os
import subprocess
import sys
from pathlib import Path

from serving import run_folder
from tests.server import ROOT

COMPLETE = """
import asyncio
import service

class Classifier:
    async def complete(self):
        raise RuntimeError("no memory for a graph")

worker = object.__new__(service.ChestCT.inner)
worker.classifier = Classifier()
asyncio.run(worker._complete())
"""


def test_a_graph_that_cannot_be_compiled_ends_the_worker_and_leaves_the_supervisor_the_reason(tmp_path: Path) -> None:
    environment = {**os.environ, **run_folder.environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPLETE], cwd=ROOT, env=environment, timeout=300, check=False)
    assert done.returncode == run_folder.CANNOT_START
    assert run_folder.pop_failure(tmp_path) == "RuntimeError: no memory for a graph"
