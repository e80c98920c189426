"""The line about a worker's start has the seconds of each phase."""

import logging
import re

import pytest

from serving.telemetry.start_times import StartTimes


def test_each_phase_has_its_seconds_and_they_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    times = StartTimes()
    times.end("imports")
    times.end("graph")
    times.report("ready")
    found = re.fullmatch(
        r"ready after ([\d.]+) s \(([\d.]+)\): imports ([\d.]+) \(([\d.]+)\), graph ([\d.]+) \(([\d.]+)\)",
        caplog.messages[-1],
    )
    assert found is not None
    whole, whole_cpu, imports, imports_cpu, graph, graph_cpu = map(float, found.groups())
    assert whole > 0
    assert whole == pytest.approx(imports + graph, abs=0.02)
    assert whole_cpu == pytest.approx(imports_cpu + graph_cpu, abs=0.02)
