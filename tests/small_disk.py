"""A real file system of a few kilobytes, which a test fills up or makes read-only. It needs Linux, and no root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_FILLER: Final = "filler"
_BLOCK: Final = 4096
_DONE: Final = b"done\n"
_FORBIDDEN: Final = (b"Operation not permitted", b"ermission denied", b"No space left on device")
"""Words of a kernel that forbids it, by a rule or by a limit on user namespaces. Any other failure is a fault."""


class SmallDisk:
    """A tmpfs in a mount namespace of its own."""

    def __init__(self, shell: "subprocess.Popen[bytes]", folder: Path) -> None:
        self._shell = shell
        self.folder: Final = folder
        """Where it is for the commands that run on it."""
        self.outside: Final = Path(f"/proc/{shell.pid}/root{folder}")
        """Where this process finds it."""

    def command(self, *words: str, cwd: Path) -> list[str]:
        """The command that runs these words in the namespace. Its process keeps its id."""
        enter = ["nsenter", "--target", str(self._shell.pid), "--user", "--preserve-credentials", "--mount"]
        return [*enter, "env", "-C", str(cwd), *words]

    def run(self, command: str) -> bool:
        """Run a command of the shell in the namespace. Returns whether it went well."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        try:
            self._shell.stdin.write(f"{command} >&2 && echo done || echo failed\n".encode())
        except BrokenPipeError:  # there is no namespace
            return False
        return self._shell.stdout.readline() == _DONE

    def fill(self) -> None:
        """Leave no room for another byte."""
        with (self.outside / _FILLER).open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_BLOCK))
            except OSError:
                return

    def free(self) -> None:
        """Give the room back that `fill` took."""
        (self.outside / _FILLER).unlink()

    def remount(self, how: str) -> None:
        """Mount it again, `ro` for reading only or `rw`."""
        assert self.run(f"mount -o remount,bind,{how} '{self.folder}'")

    def files(self) -> list[str]:
        """Every file on it but the one of `fill`, relative to its folder."""
        found = (path.relative_to(self.outside).as_posix() for path in self.outside.rglob("*") if path.is_file())
        return sorted(name for name in found if name != _FILLER)


@contextmanager
def mount(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Mount a small disk at this folder, in the disk's own namespace alone. Skip the test if that is forbidden."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("no unshare and nsenter here (Debian: apt-get install util-linux)")
    pipe = subprocess.PIPE
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none"]
    tried = subprocess.run([*command, *tmpfs, folder], stderr=pipe, env={**os.environ, "LC_ALL": "C"}, check=False)
    if any(word in tried.stderr for word in _FORBIDDEN):
        pytest.skip(f"no mount in a user namespace here: {tried.stderr.decode().strip()}")
    assert tried.returncode == 0, tried.stderr
    with subprocess.Popen([*command, "sh"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0) as shell:
        disk = SmallDisk(shell, folder)
        try:
            assert disk.run(f"{' '.join(tmpfs)} '{folder}'")
            yield disk
        finally:
            shell.kill()
