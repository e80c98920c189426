"""How the load tests measure a server's memory."""

import os
import subprocess
import sys
from pathlib import Path

from load_tests.server import Server

MB = 2**20
GROWS = """
import mmap, sys
sys.stdin.readline()
with open(sys.argv[1], "rb") as file:
    library = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(library[:: mmap.PAGESIZE])
print(flush=True)
sys.stdin.readline()
written = b"x" * (40 << 20)
print(flush=True)
sys.stdin.readline()
"""


def test_what_is_written_counts_as_growth_and_what_is_mapped_does_not(tmp_path: Path) -> None:
    file = tmp_path / "library"
    with file.open("wb") as opened:
        opened.write(bytes(40 * MB))
        opened.flush()
        os.fsync(opened.fileno())  # data that is not on the disk yet counts as written
    command = [sys.executable, "-c", GROWS, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        server = Server("", "", process, file)
        sizes = [(server.memory(), server.written_memory())]
        for _ in range(2):
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            sizes.append((server.memory(), server.written_memory()))
        process.stdin.close()
    (_, before), (mapped, unwritten), (_, after) = sizes
    assert mapped - sizes[0][0] > 30 * MB
    assert unwritten - before < 5 * MB
    assert after - unwritten > 30 * MB
