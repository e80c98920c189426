"""The tutorial's commands run in order, each of its clusters with another way to the image, so that every line runs.

kubectl is real and speaks to an API server in small, and the requests go to a real server. kind, k3s, minikube, docker,
podman and make only record how they are called, because they need the network or a cluster.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.api_server import Cluster, serve
from tests.server import ROOT, Server, needs_curl

PAGE = (ROOT / "docs/tutorials/deploy-on-kind.md").read_text(encoding="utf-8")
BUILDERS = ("Build with docker", "Build with podman", "Pull a release")
CLUSTERS = ("kind", "k3s", "minikube")
WAYS = list(zip(CLUSTERS, BUILDERS, strict=True))
LOADS = {
    "kind": "kind load image-archive",
    "k3s": "sudo k3s ctr images import",
    "minikube": "minikube image load",
}
OWN_LINES = {"kind": "kind ", "k3s": "sudo k3s", "minikube": "minikube "}
RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
"""
KUBECTL = """#!/bin/sh
echo "kubectl $*" >> {calls}
case $1 in port-forward | logs) exit ;; esac
KUBECONFIG={kubeconfig} exec {kubectl} "$@"
"""
CURL = """#!/bin/sh
case $* in *get.k3s.io*) echo "curl $*" >> {calls}; exit ;; esac
exec {curl} "$@"
"""


def blocks() -> list[tuple[str, str]]:
    """Return each block of shell commands with the heading that it is under."""
    heading, found = "", []
    for part in re.findall(r"^##+ ([^\n]*)$|^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        heading = part[0] or heading
        if part[1]:
            found.append((heading, part[1]))
    return found


def script(cluster: str, builder: str) -> str:
    """Return the commands of one way through the tutorial."""
    other = "docker save" if builder == "Build with podman" else "podman save"
    lines = []
    for heading, block in blocks():
        if heading in (*BUILDERS, *CLUSTERS):
            lines.append(block if heading in (builder, cluster) else "")
        elif re.match("|".join(OWN_LINES.values()), block):  # "one of these"
            lines += [line for line in block.splitlines(keepends=True) if re.match(OWN_LINES[cluster], line)]
        elif other not in block:
            lines.append(block)
    return "".join(lines)


def test_every_command_of_the_page_is_on_one_of_the_ways() -> None:
    ways = "".join(script(cluster, builder) for cluster, builder in WAYS)
    assert {line for _, block in blocks() for line in block.splitlines()} == set(ways.splitlines())


def prepared(folder: Path, kubeconfig: str) -> Path:
    """Make the folder of a clone and one of programs. Returns the file of recorded calls."""
    shutil.copytree(ROOT / "k8s", folder / "clone/k8s", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "clone/build").mkdir()
    (folder / "clone/serving").symlink_to(ROOT / "serving")
    calls, programs, environment = folder / "calls", folder / "programs", folder / "clone/.venv/bin"
    programs.mkdir()
    environment.mkdir(parents=True)
    texts = dict.fromkeys(("docker", "k3s", "kind", "make", "minikube", "podman", "sudo"), RECORDER)
    texts |= {"kubectl": KUBECTL, "curl": CURL, "sleep": "#!/bin/sh\n"}
    for name, text in texts.items():
        known = {"kubectl": shutil.which("kubectl"), "curl": shutil.which("curl"), "kubeconfig": kubeconfig}
        (programs / name).write_text(text.format(calls=calls, **known), encoding="utf-8")
    (environment / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    for file in (*programs.iterdir(), *environment.iterdir()):
        file.chmod(0o755)
    return calls


@needs_curl
@pytest.mark.parametrize(("cluster", "builder"), WAYS)
def test_the_tutorial_goes_from_nothing_to_an_answer_and_back(
    cluster: str, builder: str, server: Server, tmp_path: Path
) -> None:
    inside = Cluster(namespace="chestct-dev")
    with serve(inside, tmp_path) as environment:
        calls = prepared(tmp_path, environment["KUBECONFIG"])
        text = script(cluster, builder).replace("localhost:3000", urlsplit(server.url).netloc)
        path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace("localhost:3001", server.grpc)],
            cwd=tmp_path / "clone",
            env={**os.environ, **environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"decision"' in done.stdout
    assert re.search(r"^decision over gRPC: (accept|refer|reject)$", done.stdout, re.MULTILINE)
    assert "Not a medical device" in done.stdout
    said = calls.read_text(encoding="utf-8").splitlines()
    order = ["save", LOADS[cluster], "apply -k k8s/admin/dev", "apply -k k8s/overlays/dev", "port-forward", "patch"]
    order += ["apply -k build/tutorial", "jsonpath={.status.ready}=1", "rollout restart"]
    order += ["rollout undo", "condition=Complete", "logs", "delete -k build/tutorial", "delete -k k8s/admin/dev"]
    places = [next((at for at, line in enumerate(said) if word in line), -1) for word in order]
    assert -1 not in places
    assert places == sorted(places)
    archives = {line.split("--output ")[1].split()[0] for line in said if " save " in line}
    assert archives == {line.split()[-1] for line in said if line.startswith(LOADS[cluster])}
    assert not inside.objects.keys() & {("namespaces", "", "chestct-dev"), ("deployments", "chestct-dev", "chestct")}


def test_the_saved_image_has_the_name_that_the_manifests_ask_for() -> None:
    full = "docker.io/library/chestct:dev"  # what a cluster takes `chestct:dev` for
    for heading, block in blocks():
        for archive, name in re.findall(r"save --output (\S+) (\S+)", block):
            wanted = full if "load" not in archive else full.replace("chestct:dev", "chestct-load:0.2.0")
            assert name in (wanted, wanted.removeprefix("docker.io/library/")), heading
            assert ("podman" in block) == name.startswith("docker.io/")


@pytest.mark.skipif(shutil.which("podman") is None, reason="no podman here (Debian: apt-get install podman)")
def test_podman_saves_an_image_under_its_second_name(tmp_path: Path) -> None:
    name = f"chestct-tutorial:{tmp_path.name}"
    full = f"docker.io/library/{name}"

    def podman(*arguments: str) -> None:
        done = subprocess.run(["podman", *arguments], capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    if (usable := subprocess.run(["podman", "info"], capture_output=True, timeout=300, check=False)).returncode:
        pytest.skip(f"podman does not run here: {usable.stderr.decode().strip()[-200:]}")
    (tmp_path / "file").write_text("content")
    subprocess.run(["tar", "-cf", "root.tar", "file"], cwd=tmp_path, check=True)
    podman("import", str(tmp_path / "root.tar"), name)
    try:
        podman("tag", f"localhost/{name}", full)
        podman("save", "--output", str(tmp_path / "saved.tar"), full)
        subprocess.run(["tar", "-xf", "saved.tar", "manifest.json"], cwd=tmp_path, check=True)
        assert f'"RepoTags":["{full}"]' in (tmp_path / "manifest.json").read_text(encoding="utf-8").replace(" ", "")
    finally:
        subprocess.run(["podman", "rmi", "--force", full, f"localhost/{name}"], capture_output=True, check=False)
