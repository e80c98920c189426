"""The rules of the layout: which package imports which, who owns a library, and imports without side effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import ROOT

PACKAGES = ("archive", "chestct", "dicom_node", "pipeline", "serving")
FILES = [*(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))), ROOT / "service.py"]

TOOLS = {"benchmarks", "docs", "image", "k8s", "load_tests", "tests"}
"""Packages that use the service and the pipeline. Neither of those may import them."""
FORBIDDEN = {
    "archive": {"dicom_node", "pipeline", "serving", "service", *TOOLS},
    "chestct": {"archive", "dicom_node", "pipeline", "serving", "service", *TOOLS},
    "dicom_node": {"archive", "pipeline", "serving", "service", *TOOLS},
    "pipeline": {"archive", "dicom_node", "serving", "service", *TOOLS},
    "serving": {"archive", "dicom_node", "pipeline", "service", *TOOLS},
    "service": {"archive", "dicom_node", "pipeline", *TOOLS},
    "load_tests": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}
LAYERS = [
    {"serving.http", "serving.rpc", "serving.supervision", "serving.shutdown", "serving.ensure_model"},
    {"serving.open_inference"},
    {"serving.inference"},
    {"serving.inference_log"},
    {"serving.telemetry"},
    {"serving.memory_budget", "serving.tensors", "serving.worker_states"},
    {"serving.api_keys", "serving.run_folder", "serving.settings", "serving.unavailable"},
    {"serving.certificate"},
]
"""The parts of serving/ in layers. A module may import its own part and the layers below."""
HTTP = (
    "admission_control",
    "app",
    "bentoml_api",
    "body",
    "error_boundary",
    "errors",
    "request_recording",
    "require_api_key",
    "shortcut",
    "private_port",
    "readiness",
    "rendered",
    "v1",
    "v2",
    "page_routes",
)
RPC = ("connections", "errors", "health", "interceptor", "message_reader", "server")
DICOM = ("capture", "concepts", "objects", "reading", "receive", "report", "returned", "send", "slices")
OWNERS = {
    "arro3": {"chestct/tables.py"},
    "obstore": {"chestct/buckets.py"},
    "bentoml": {"chestct/store.py", "service.py", "serving/supervision/supervisor.py"},
    "circus": {"serving/supervision/supervisor.py"},
    "openvino": {"chestct/engine.py"},
    "mlflow": {"pipeline/core/tracking.py", "pipeline/core/tracking_models.py"},
    "jinja2": {"pipeline/documents.py"},
    "optuna": {"pipeline/sweep.py"},
    "onnxruntime": {"pipeline/graph/rounding.py", "pipeline/graph/to_onnx.py"},
    "kagglehub": {"pipeline/ingest.py"},
    "grpc": {f"serving/rpc/{name}.py" for name in RPC},
    "grpc_health": {"serving/rpc/health.py", "serving/rpc/server.py"},
    "grpc_reflection": {"serving/rpc/server.py"},
    "open_inference": {f"serving/rpc/{name}.py" for name in ("inference", "interceptor", "server")},
    "opentelemetry": {"serving/telemetry/tracing.py"},
    "kornia_rs": {"chestct/image.py"},
    "pydicom": {"chestct/dicom.py", "pipeline/judging/other_pictures.py", *(f"dicom_node/{name}.py" for name in DICOM)},
    "pynetdicom": {"dicom_node/receive.py", "dicom_node/send.py"},
    "highdicom": {f"dicom_node/{name}.py" for name in ("capture", "concepts", "report")},
    "dicomweb_client": {"dicom_node/send.py"},
    "requests": {"dicom_node/score.py", "dicom_node/send.py"},
    "starlette": {f"serving/http/{name}.py" for name in HTTP},
    "uvicorn": {
        f"serving/http/{name}.py" for name in ("accepting", "connection_closing", "connections", "private_port")
    },
    "uvloop": {"serving/http/accepting.py"},
    "prometheus_client": {
        "dicom_node/metrics.py",
        "serving/telemetry/gathering_histogram.py",
        "serving/telemetry/metrics.py",
    },
    "pydantic_settings": {"chestct/environment_settings.py", "dicom_node/settings.py"},
}
TRAINING_ONLY = {
    "tensorflow",
    "keras",
    "mlflow",
    "dvc",
    "kagglehub",
    "sklearn",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "matplotlib",
    "optuna",
}

IMPORT_EACH = """
import importlib, logging, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name in sys.modules if "." not in name))
print(*(type(handler).__name__ for handler in logging.getLogger().handlers))
print(*sorted(os.listdir()))
"""


def imports(path: Path) -> set[str]:
    """Return the modules and names that this file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(path: Path) -> set[str]:
    """Return the top-level names of the packages that this file imports."""
    return {name.partition(".")[0] for name in imports(path)}


def part_of_serving(name: str) -> str:
    return ".".join(name.split(".")[:2])


def module_names(*packages: str) -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.relative_to(ROOT).parts[0].removesuffix(".py") in packages
    ]


def import_each(folder: Path, names: list[str]) -> tuple[set[str], list[str], list[str]]:
    """Import the modules in a new process and an empty folder. Returns loaded modules, root log handlers, new files."""
    (folder / "home").mkdir()
    (folder / "empty").mkdir()
    environment = {
        "PATH": "",
        "HOME": str(folder / "home"),
        "BENTOML_HOME": str(folder / "home" / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", IMPORT_EACH, *names]
    done = subprocess.run(
        command, cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    modules, handlers, files = done.stdout.split("\n")[:3]
    return set(modules.split()), handlers.split(), files.split()


MEASURING = [path for name in ("load_tests", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("path", [*FILES, *MEASURING], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not imported(path) & FORBIDDEN[package]


SERVING = [path for path in FILES if path.is_relative_to(ROOT / "serving") and path != ROOT / "serving/__init__.py"]


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_within_serving_run_down(path: Path) -> None:
    own = part_of_serving(".".join(path.relative_to(ROOT).with_suffix("").parts))
    (layer,) = [number for number, parts in enumerate(LAYERS) if own in parts]
    below = {own}.union(*LAYERS[layer + 1 :])
    assert {part_of_serving(name) for name in imports(path) if name.startswith("serving.")} <= below


def test_one_library_is_known_to_one_module() -> None:
    importers = {path.relative_to(ROOT).as_posix(): imported(path) for path in FILES}
    found = {library: {path for path, names in importers.items() if library in names} for library in OWNERS}
    assert found == OWNERS


def test_serving_imports_none_of_the_training_libraries_and_does_nothing_when_imported(tmp_path: Path) -> None:
    names = module_names("archive", "chestct", "serving", "service")
    names.remove(
        "serving.supervision.supervisor"
    )  # its import of circus sets up logging, which only BentoML's supervisor may do
    loaded, handlers, files = import_each(tmp_path, names)
    assert {"service", "bentoml", "openvino", "grpc"} <= loaded
    assert not loaded & TRAINING_ONLY
    assert (handlers, files) == ([], [])


def test_the_pipeline_does_nothing_when_imported(tmp_path: Path) -> None:
    loaded, handlers, files = import_each(tmp_path, module_names("pipeline"))
    assert {"keras", "mlflow"} <= loaded
    assert (handlers, files) == ([], [])
