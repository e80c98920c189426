"""What the tests of the manifests read from them."""

import re
from functools import cache
from typing import Any

import yaml

from k8s.render import render
from serving.settings import PREFIX, Settings

Objects = list[dict[str, Any]]


@cache
def rendered(overlay: str, components: tuple[str, ...] = (), kind: str = "overlays") -> Objects:
    """Return the objects of an overlay, or of what an admin applies before it."""
    return list(yaml.safe_load_all(render(overlay, components, kind=kind)))


def namespace(objects: Objects) -> str:
    name: str = find(objects, "Deployment")["metadata"]["namespace"]
    return name


def find(objects: Objects, kind: str, prefix: str = "chestct") -> dict[str, Any]:
    (only,) = [item for item in objects if item["kind"] == kind and re.fullmatch(prefix, item["metadata"]["name"])]
    return only


def pod(objects: Objects) -> dict[str, Any]:
    return find(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects: Objects) -> dict[str, Any]:
    (only,) = pod(objects)["containers"]
    return only


def environment(objects: Objects) -> dict[str, str]:
    """Return the variables that the container itself names, beside those of the ConfigMap."""
    return {item["name"]: item["value"] for item in container(objects)["env"]}


def settings(objects: Objects) -> dict[str, str]:
    return find(objects, "ConfigMap", "chestct-[0-9a-z]{10}")["data"]


def read_settings(objects: Objects) -> Settings:
    return Settings.model_validate(
        {name.removeprefix(PREFIX).lower(): value for name, value in settings(objects).items()}
    )


def ports(objects: Objects) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(objects)["ports"]}


def autoscaler(objects: Objects) -> tuple[int, int]:
    """Return the fewest and the most pods of the autoscaler or the ScaledObject."""
    for item in objects:
        if item["kind"] == "HorizontalPodAutoscaler":
            return item["spec"]["minReplicas"], item["spec"]["maxReplicas"]
        if item["kind"] == "ScaledObject":
            return item["spec"]["minReplicaCount"], item["spec"]["maxReplicaCount"]
    raise AssertionError("nothing scales")
