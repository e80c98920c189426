"""Write the tables of docs/reference/ from the code: commands, parameters, settings, metrics, fields.

python -m docs.tables
"""

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from chestct import card
from chestct.prediction import Prediction
from dicom_node import metrics as node_metrics
from dicom_node import settings as node_settings
from pipeline.core.pages import replace_part
from serving.settings import PREFIX, Settings
from serving.telemetry import metrics

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"


def commands() -> str:
    """Every target of the Makefile with the words that `make` alone prints."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*?## (.*)$", makefile, re.MULTILINE)
    return _table(("command", "what it does"), ((f"`make {name}`", words) for name, words in targets))


def settings() -> str:
    """Every setting of the service, in the order of the code."""
    return _settings(PREFIX, Settings)


def metric_rows() -> str:
    """Every metric of /metrics, in the order of the code."""
    return _metrics(metrics)


def dicom_node() -> str:
    """Every setting and every metric of the DICOM node."""
    variables = _settings(node_settings.PREFIX, node_settings.Settings)
    return f"## Settings\n\n{variables}\n## Metrics\n\n{_metrics(node_metrics)}"


def _settings(prefix: str, model: type[BaseModel]) -> str:
    rows = (
        (f"`{prefix}{name.upper()}`", _default(field), _allowed(field), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
    )
    return _table(("variable", "default", "allowed", "what"), rows)


def _metrics(module: ModuleType) -> str:
    rows = []
    for value in vars(module).values():
        for metric in value.values() if isinstance(value, dict) else (value,):
            if isinstance(metric, MetricWrapperBase) and not metric._labelvalues:  # the public API names no labels
                (family,) = metric.describe()
                name = family.name + ("_total" if family.type == "counter" else "")
                rows.append((f"`{name}`", family.type, ", ".join(metric._labelnames), family.documentation))
    return _table(("metric", "type", "labels", "what it counts or measures"), rows)


def card_fields() -> str:
    """The card's fields, and below them those of each part of the card."""
    parts = {card.ModelCard.__name__: card.ModelCard}
    schemas = card.ModelCard.model_json_schema()["$defs"]
    parts |= {name: getattr(card, name) for name in schemas}
    return "\n".join(f"## {name}\n\n{_about(part)}{_fields(part)}" for name, part in parts.items()).rstrip("\n") + "\n"


def answer_fields() -> str:
    """The fields of one image's answer."""
    return _fields(Prediction)


def parameters() -> str:
    """Every key of params.yaml with its value and its comment."""
    rows, path = [], list[str]()
    for line in (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"( *)([\w.]+): *([^#]*?)(?: *# *(.*))?", line):
            path[len(found[1]) // 2 :] = [found[2]]
            if found[3] or found[4]:
                value = f"`{found[3]}`" if found[3] else ""
                rows.append((f"`{'.'.join(path)}`", value, (found[4] or "").replace(" | ", " or ")))
    return _table(("key", "value", "meaning"), rows)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "commands.md": commands,
    "parameters.md": parameters,
    "settings.md": settings,
    "metrics.md": metric_rows,
    "model-card-fields.md": card_fields,
    "http-api.md": answer_fields,
    "dicom-node.md": dicom_node,
}


def in_page(name: str) -> str:
    """The page of this name with its table as the code has it now."""
    page = (REFERENCE / name).read_text(encoding="utf-8")
    return replace_part(page, "python -m docs.tables", f"\n{PAGES[name]()}\n")


def _about(model: type[BaseModel]) -> str:
    words = " ".join((model.__dict__.get("__doc__") or "").split())
    return f"{words}\n\n" if words else ""


def _fields(model: type[BaseModel]) -> str:
    properties = model.model_json_schema(ref_template="{model}")["properties"]
    words = dict(_docstrings(model))
    rows = ((f"`{name}`", _kind(properties[name]), words.get(name, "")) for name in properties)
    return _table(("field", "type", "meaning"), rows)


def _docstrings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The strings below the fields of a model and of its bases."""
    for part in reversed(model.__mro__):
        if part.__module__ == model.__module__:
            (tree,) = ast.parse(inspect.getsource(part)).body
            assert isinstance(tree, ast.ClassDef)
            for field, after in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                    yield ast.unparse(field.target), " ".join(ast.literal_eval(after.value).split())


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "$ref" in schema:
        return f"[{schema['$ref']}](#{schema['$ref'].lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "array" if "prefixItems" in schema:
            return f"pair of {_kind(schema['prefixItems'][0])}"
        case "array":
            return f"list of {_kind(schema['items'])}"
        case "object":
            return f"object of {_kind(schema['additionalProperties'])}"
        case kind:
            bounds = f" {schema['minimum']} to {schema['maximum']}" if {"minimum", "maximum"} <= set(schema) else ""
            return f"{kind}{bounds}"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        return str(extra["default"])
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    return str(field.default).lower() if field.annotation is bool else str(field.default)


def _allowed(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true, false"
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    bounds = {type(bound): bound for bound in field.metadata}
    low = bounds.get(Ge) or bounds.get(Gt)
    high = bounds.get(Le)
    if low is None:
        return ""
    start = f"above {low.gt}" if isinstance(low, Gt) else f"{low.ge}"
    return f"{start} to {high.le}" if high else f"{start} or more"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    for name in PAGES:
        (REFERENCE / name).write_text(in_page(name), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m docs.tables", description=__doc__).parse_args()
    main()
