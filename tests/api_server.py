"""A Kubernetes API server in small, for tests of what kubectl sends and of what a Role allows.

It stores objects, applies patches with kubectl's own code, writes lists as the real server does, and lets an account do
only what the rules of its Role allow. It runs no pods: a Deployment and a Job are complete as soon as they are stored.
"""

import hashlib
import itertools
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

Item = dict[str, Any]

RESOURCES = {
    "v1": {
        "ConfigMap": "configmaps",
        "Event": "events",
        "Namespace": "namespaces",
        "Pod": "pods",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {"Deployment": "deployments", "ReplicaSet": "replicasets", "StatefulSet": "statefulsets"},
    "argoproj.io/v1alpha1": {"AnalysisTemplate": "analysistemplates", "Rollout": "rollouts"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "autoscaling.k8s.io/v1": {"VerticalPodAutoscaler": "verticalpodautoscalers"},
    "batch/v1": {"CronJob": "cronjobs", "Job": "jobs"},
    "gateway.networking.k8s.io/v1": {"GRPCRoute": "grpcroutes", "HTTPRoute": "httproutes"},
    "http.keda.sh/v1beta1": {"InterceptorRoute": "interceptorroutes"},
    "keda.sh/v1alpha1": {"ScaledObject": "scaledobjects"},
    "monitoring.coreos.com/v1": {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"},
    "networking.k8s.io/v1": {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "rbac.authorization.k8s.io/v1": {"Role": "roles", "RoleBinding": "rolebindings"},
}
"""The plural of each kind, by group and version."""


class Asked(NamedTuple):
    """A request, as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


def stored(value: Any) -> Any:
    """Return the value as the server keeps it: its types leave out what is null and lists that are empty."""
    if isinstance(value, dict):
        return {key: stored(inside) for key, inside in value.items() if inside is not None and inside != []}
    return [stored(inside) for inside in value] if isinstance(value, list) else value


@dataclass
class Cluster:
    """What the server holds.

    rules: the rules of the account's Role, in `namespace`. If None, the account is an admin.
    """

    rules: list[Item] | None = None
    namespace: str = "chestct"
    objects: dict[tuple[str, str, str], Item] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def allows(self, asked: Asked) -> bool:
        if self.rules is None:
            return True
        return asked.namespace == self.namespace and any(
            asked.group in rule["apiGroups"] and asked.resource in rule["resources"] and asked.verb in rule["verbs"]
            for rule in self.rules
        )

    def find(self, kind: str, namespace: str | None = None) -> list[Item]:
        return [
            item
            for item in self.objects.values()
            if item["kind"] == kind and namespace in (None, item["metadata"].get("namespace", ""))
        ]

    def keep(self, resource: str, item: Item) -> Item:
        """Store an object. Its version rises only if the object changed, as in a cluster."""
        meta = item["metadata"]
        key = (resource, meta.get("namespace", ""), meta["name"])
        old = self.objects.get(key)
        new = stored(item)
        if old is not None and {**old, "status": None} == {**new, "status": None}:
            return old
        new["metadata"] |= {
            "uid": old["metadata"]["uid"] if old else f"uid-{next(self.versions)}",
            "resourceVersion": str(next(self.versions)),
            "generation": old["metadata"]["generation"] + 1 if old else 1,
        }
        self.objects[key] = new
        if resource == "deployments":
            self.roll(new)
        if resource == "horizontalpodautoscalers":
            self.scale(new)
        if resource == "jobs":
            new["status"] = {"ready": 1, "succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        return new

    def scale(self, autoscaler: Item) -> None:
        """Give the Deployment the fewest pods that the autoscaler allows."""
        meta, spec = autoscaler["metadata"], autoscaler["spec"]
        deployment = self.objects.get(("deployments", meta["namespace"], spec["scaleTargetRef"]["name"]))
        if deployment is not None:
            deployment["spec"]["replicas"] = max(deployment["spec"]["replicas"], spec["minReplicas"])
            self.count(deployment)

    def roll(self, deployment: Item) -> None:
        """Do what the controllers do: give a new template a ReplicaSet and a revision, and count its pods as ready."""
        meta, spec = deployment["metadata"], deployment["spec"]
        spec.setdefault("replicas", 1)
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:10]
        sets = self.find("ReplicaSet", meta["namespace"])
        revision = str(1 + max([int(item["metadata"]["annotations"][REVISION]) for item in sets], default=0))
        template = json.loads(json.dumps(spec["template"]))
        template["metadata"].setdefault("labels", {})["pod-template-hash"] = digest
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "controller": True}
        name = f"{meta['name']}-{digest}"
        replica_set = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": template["metadata"]["labels"],
                "annotations": {REVISION: revision},
                "ownerReferences": [{**owner, "name": meta["name"], "uid": meta["uid"]}],
                "uid": f"uid-{name}",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"replicas": 1, "selector": spec["selector"], "template": template},
        }
        self.objects["replicasets", meta["namespace"], name] = replica_set
        meta.setdefault("annotations", {})[REVISION] = revision
        self.count(deployment)

    def count(self, deployment: Item) -> None:
        """Write that every pod of the Deployment is new and ready."""
        named = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        counts = dict.fromkeys(named, deployment["spec"]["replicas"])
        deployment["status"] = {"observedGeneration": deployment["metadata"]["generation"], **counts}


REVISION = "deployment.kubernetes.io/revision"


def patched(item: Item, patch: bytes, kind: str) -> Item:
    """Return the object with a patch of the kind "strategic", "merge" or "json", by the code in kubectl."""
    command = ["kubectl", "patch", "--local", "-f", "-", "--type", kind, "-p", patch.decode(), "-o", "json"]
    done = subprocess.run(command, input=json.dumps(item), check=True, capture_output=True, text=True)
    result: Item = json.loads(done.stdout)
    return result


class Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, code: int, content: Item) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code: int, reason: str, message: str) -> None:
        status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code}
        self.answer(code, {**status, "reason": reason, "message": message})

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        parts = PATH.fullmatch(url.path)
        if parts is None:
            found = discovery(url.path.rstrip("/"))
            return self.answer(200, found) if found else self.refuse(404, "NotFound", "not found")
        core, version, namespace, plural, name, part = parts.groups(default="")
        if plural == "namespaces":
            namespace = name  # RBAC takes a request about a namespace for one inside it
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(self.command, "get" if name else "list")
        asked = Asked(
            "watch" if "watch" in query else verb,
            version.rpartition("/")[0],
            f"{plural}/{part}" if part else plural,
            namespace,
            name,
        )
        with LOCK:
            self.cluster.asked.append(asked)
            if not self.cluster.allows(asked):
                return self.refuse(403, "Forbidden", f"{asked} is not allowed")
            return self.act(asked, core or version, body, query)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

    def act(self, asked: Asked, version: str, body: bytes, query: dict[str, list[str]]) -> None:
        cluster = self.cluster
        key = (asked.resource, "" if asked.resource == "namespaces" else asked.namespace, asked.name)
        kind = next((kind for kind, plural in RESOURCES[version].items() if plural == asked.resource), "Status")
        if asked.verb == "watch":
            self.send_response(200)  # nothing changes any more, so the stream ends without an event
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if asked.verb == "list":
            items = [item for item in cluster.find(kind, asked.namespace) if chosen(item, query)]
            return self.answer(200, {"apiVersion": version, "kind": f"{kind}List", "metadata": {}, "items": items})
        if asked.verb == "create":
            return self.answer(201, cluster.keep(asked.resource, json.loads(body)))
        if key not in cluster.objects:
            return self.refuse(404, "NotFound", f'{asked.resource} "{asked.name}" not found')
        if asked.verb == "patch":
            kinds = {"application/json-patch+json": "json", "application/merge-patch+json": "merge"}
            how = kinds.get(self.headers["Content-Type"], "strategic")
            new = patched(cluster.objects[key], body, how)
            return self.answer(200, stored(new) if "dryRun" in query else cluster.keep(asked.resource, new))
        return self.answer(200, cluster.objects.pop(key) if asked.verb == "delete" else cluster.objects[key])


LOCK = threading.RLock()
PATH = re.compile(
    r"/(?:api/(v1)|apis/([^/]+/[^/]+))/(?:namespaces/([^/]+)/(?=.))?([^/]+)(?:/([^/]+))?(?:/([^/]+))?",
)
"""A version, a namespace, the plural of a kind, a name and a part of the object."""


def chosen(item: Item, query: dict[str, list[str]]) -> bool:
    """Tell whether an object has the labels and the name that a list asks for."""
    labels = item["metadata"].get("labels", {})
    wanted = [pair.partition("=")[::2] for pair in ",".join(query.get("labelSelector", [])).split(",") if pair]
    names = [pair.partition("=")[2] for pair in query.get("fieldSelector", [])]
    return all(labels.get(key) == value for key, value in wanted) and names in ([], [item["metadata"]["name"]])


def discovery(path: str) -> Item | None:
    """Return what the server says of its kinds, or None."""
    groups = [version for version in RESOURCES if "/" in version]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        named = [{"groupVersion": version, "version": version.rpartition("/")[2]} for version in groups]
        listed = [{"name": v["groupVersion"].rpartition("/")[0], "versions": [v], "preferredVersion": v} for v in named]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path == "/openapi/v3":
        urls = [path_of(version) for version in RESOURCES]
        return {"paths": {url: {"serverRelativeURL": f"/openapi/v3/{url}"} for url in urls}}
    version = path.removeprefix("/openapi/v3").strip("/").partition("/")[2]
    if version not in RESOURCES:
        return None
    if path.startswith("/openapi"):
        return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": operations(version)}
    verbs = ["create", "delete", "get", "list", "patch", "watch"]
    listed = [
        {"name": plural, "kind": kind, "namespaced": kind != "Namespace", "verbs": verbs, "singularName": kind.lower()}
        for kind, plural in RESOURCES[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def path_of(version: str) -> str:
    return f"api/{version}" if version == "v1" else f"apis/{version}"


def operations(version: str) -> Item:
    """Return the operations that say that the server itself checks fields and can run dry."""
    group, _, number = version.rpartition("/")
    parameters = [{"name": name, "in": "query"} for name in ("dryRun", "fieldValidation")]
    return {
        f"/{path_of(version)}/{plural}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            }
        }
        for kind, plural in RESOURCES[version].items()
    }


@contextmanager
def serve(cluster: Cluster, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the cluster, and yield the environment in which kubectl speaks to it, as `admin` of its namespace."""
    handler = type("ClusterHandler", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    context = {"cluster": "here", "user": "deployer", "namespace": cluster.namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "deployer", "user": {"token": "deployer"}}],
        "contexts": [{"name": "here", "context": context}],
        "current-context": "here",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        yield {"KUBECONFIG": str(folder / "kubeconfig"), "HOME": str(folder), "KUBECACHEDIR": str(folder / "cache")}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
