"""Measures memory and installed size of the service, and describes the machine."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from image.slim import CannotSlim, slim
from load_tests.machine import cpu_name
from load_tests.server import ROOT, Server, served_commit
from load_tests.verdict import LoadError

REQUIREMENTS: Final = ROOT / "requirements" / "serving.txt"
FLAGS: Final = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
"""CPU flags that matter to the arithmetic of a network."""
PACKAGES: Final = ("openvino", "onnxruntime", "bentoml", "uvicorn", "grpcio", "numpy", "pillow")


def worker_memory(server: Server) -> float:
    """Return the MB of the largest worker: its own pages, and its share of those that several processes use (PSS)."""
    return max(worker.memory_full_info().pss for worker in server.workers().values()) / 1e6


def installed_size(requirements: Path = REQUIREMENTS) -> float:
    """Return the MB of the pinned distributions' files that the image keeps, without Python's bytecode.

    Slims a copy of them as the image does. Skips distributions whose marker does not apply to this machine. Raises
    LoadError if another one is not installed, or if slimming fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in _pinned_files(requirements):
            if file.suffix != ".pyc" and ".." not in file.parts:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), folder / file)
        try:
            slim(folder)
        except CannotSlim as error:
            raise LoadError(str(error)) from None
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def _pinned_files(requirements: Path) -> Iterator[metadata.PackagePath]:
    pins = re.findall(r"^([\w.-]+)==\S+ (;?)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    for name, marked in pins:
        try:
            yield from metadata.files(name) or []
        except metadata.PackageNotFoundError:
            if not marked:
                raise LoadError(f"{name} of {requirements.name} is not installed; `make test` installs it") from None


def describe_machine() -> dict[str, str]:
    """Return a description of the machine and the installed packages, by heading."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = re.search(r"^flags\s*: (.+)$", cpu, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return {
        "CPU": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": ", ".join(flag for flag in FLAGS if flag in has) or "none of those looked for",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "packages": versions(PACKAGES),
        "commit": served_commit(),
    }


def machine_table(machine: Mapping[str, str]) -> list[str]:
    """Return a Markdown section with the description of the machine."""
    rows = (f"| {name} | {words} |" for name, words in machine.items())
    return ["## The machine", "", "| part | value |", "|---|---|", *rows]


def versions(names: tuple[str, ...]) -> str:
    """The installed ones of these packages, with their versions."""
    installed = {name: metadata.version(name) for name in names if _is_installed(name)}
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def _is_installed(name: str) -> bool:
    return next(iter(metadata.distributions(name=name)), None) is not None
