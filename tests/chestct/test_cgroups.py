"""Limits are read from control groups of both versions."""

import math
from pathlib import Path

import pytest

from chestct import cgroups

NONE = (math.inf, math.inf, 0)
VERSION_2 = {
    "cpu.max": "150000 100000\n",
    "memory.max": "419430400\n",
    "memory.events": "low 0\nhigh 0\nmax 71\noom 4\noom_kill 3\noom_group_kill 0\n",
}
VERSION_1 = {
    "cpu/cpu.cfs_quota_us": "150000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.limit_in_bytes": "419430400\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
}
VERSION_2_UNLIMITED = {"cpu.max": "max 100000\n", "memory.max": "max\n", "memory.events": "oom 0\noom_kill 0\n"}
VERSION_1_UNLIMITED = {
    "cpu/cpu.cfs_quota_us": "-1\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",  # as old kernels write it
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (VERSION_2, (1.5, 419430400, 3)),
        (VERSION_1, (1.5, 419430400, 3)),
        (VERSION_2_UNLIMITED, NONE),
        (VERSION_1_UNLIMITED, NONE),
        ({}, NONE),
    ],
    ids=["version 2", "version 1", "version 2 without limits", "version 1 without limits", "no control groups"],
)
def test_limits_and_kills(
    files: dict[str, str], expected: tuple[float, float, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content, encoding="ascii")
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    assert (cgroups.cpu_limit(), cgroups.memory_limit(), cgroups.memory_kills()) == expected


@pytest.mark.parametrize(
    ("quota", "shared"), [("150000 100000", True), ("200000 100000", False), ("max 100000", False)]
)
def test_cores_are_shared_if_the_limit_is_below_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, shared: bool
) -> None:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "_allowed_cores", lambda: 2)
    (tmp_path / "cpu.max").write_text(quota)
    assert cgroups.cores_are_shared() == shared
