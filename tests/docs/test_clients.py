"""The examples of docs/how-to/clients run as they stand, against a real server of the tiny model.

Those of other people's clients run in tests/clients.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from google.protobuf import json_format
from open_inference.grpc import protocol

from chestct.image import encode_png
from serving import open_inference
from serving.tensors import pack_bytes
from tests.graphs import tiny_card, tiny_picture
from tests.server import ROOT, Server, needs_curl

FOLDER = ROOT / "docs" / "how-to" / "clients"
NORMAL = 2


def examples(page: str, language: str) -> list[str]:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def output(command: list[str], folder: Path) -> str:
    (folder / "slice.png").write_bytes(encode_png(tiny_picture(NORMAL)[:, :, 0]))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(example: str, server: Server) -> str:
    example = example.replace("chestct-grpc:3001", server.grpc)
    return example.replace("localhost:3000", urlsplit(server.url).netloc).replace("localhost:3001", server.grpc)


@needs_curl
@pytest.mark.parametrize("example", examples("curl", "sh")[:2], ids=["raw", "form"])
def test_a_curl_example_prints_the_prediction(example: str, server: Server, tmp_path: Path) -> None:
    prediction = json.loads(output(["bash", "-ec", here(example, server)], tmp_path))
    assert prediction["label"] == "normal"
    assert ("heatmaps" in prediction) == ("explain=true" in example)


@needs_curl
def test_the_curl_examples_of_the_inference_protocol_answer_in_binary_and_in_json(
    server: Server, tmp_path: Path
) -> None:
    binary, as_json = examples("curl", "sh")[2:]
    output(["bash", "-ec", here(binary, server)], tmp_path)
    assert pack_bytes([b"normal"]) in (tmp_path / "answer.bin").read_bytes()
    outputs = json.loads(output(["bash", "-ec", here(as_json, server)], tmp_path))["outputs"]
    assert {tensor["name"]: tensor["data"] for tensor in outputs}["label"] == ["normal"]


@pytest.mark.parametrize("page", ["python", "grpc", "grpc-balancing"])
def test_a_python_example_prints_the_label(page: str, server: Server, tmp_path: Path) -> None:
    (example,) = examples(page, "python")
    assert "normal" in output([sys.executable, "-W", "error", "-c", here(example, server)], tmp_path)


@pytest.mark.parametrize("number", [0, 1], ids=["http", "grpc"])
def test_an_example_with_several_images_prints_the_decision_on_each(
    number: int, server: Server, tmp_path: Path
) -> None:
    example = examples("several", "python")[number]
    printed = output([sys.executable, "-W", "error", "-c", here(example, server)], tmp_path).splitlines()
    assert [line.split()[-1] for line in printed] == ["accept", "accept"]


def test_the_reflection_example_lists_services_and_methods(server: Server, tmp_path: Path) -> None:
    (example,) = examples("reflection", "python")
    printed = output([sys.executable, "-W", "error", "-c", here(example, server)], tmp_path)
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health", "ModelInfer"} <= set(printed.split())


def test_the_grpcurl_example_sends_a_message_of_the_protocol() -> None:
    (example,) = examples("reflection", "console")
    template = re.search(r"printf '(.*?)' ", example, re.DOTALL)
    assert template
    request = json_format.Parse(template[1] % "aW1hZ2U=", protocol.ModelInferRequest())
    assert request.inputs[0].contents.bytes_contents == [b"image"]


@pytest.mark.skipif(shutil.which("gofmt") is None, reason="no gofmt here (Debian: apt-get install golang-go)")
def test_the_go_example_is_go_in_its_usual_form(tmp_path: Path) -> None:
    (example,) = examples("grpc-balancing", "go")
    (tmp_path / "main.go").write_text(example)
    assert output(["gofmt", "-e", "main.go"], tmp_path) == example


def test_the_retries_of_the_go_example_are_those_of_the_python_example() -> None:
    (go,), (python,) = examples("grpc-balancing", "go"), examples("grpc-balancing", "python")
    (config,) = re.findall(r"serviceConfig = `(.*?)`", go, re.DOTALL)
    (retry,) = re.findall(r"^retry = (\{.*?^\})$", python, re.MULTILINE | re.DOTALL)
    assert json.loads(config)["methodConfig"][0]["retryPolicy"] == ast.literal_eval(retry)


def test_every_output_of_the_metadata_is_in_the_table() -> None:
    about = open_inference.metadata(tiny_card(), "chestct:abc")
    page = (ROOT / "docs/reference/open-inference-protocol.md").read_text(encoding="utf-8")
    for spec in (*about.inputs, *about.outputs):
        assert f"`{spec.name}`" in page
