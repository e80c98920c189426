"""The component `inference-log`: a bucket, its Secret and the way to it. The guide's patch: a volume instead."""

import shutil
import subprocess
from pathlib import Path

import yaml

from k8s.render import HERE
from tests.manifests import container, environment, find, pod, read_settings, rendered
from tests.server import ROOT

GUIDE = (ROOT / "docs/how-to/keep-an-inference-log.md").read_text(encoding="utf-8")
OBJECTS = rendered("production", ("inference-log",))
PLAIN = rendered("production")


def memory(kind: str, objects: list[dict[str, object]] = OBJECTS) -> int:
    return int(container(objects)["resources"][kind]["memory"].removesuffix("Mi"))


def test_the_log_is_in_a_bucket_whose_keys_come_from_the_guides_secret() -> None:
    place = read_settings(OBJECTS).inference_log
    assert place is not None
    assert place.startswith("s3://")
    assert read_settings(PLAIN).inference_log is None
    (secret,) = (source["secretRef"]["name"] for source in container(OBJECTS)["envFrom"] if "secretRef" in source)
    assert f"create secret generic {secret} " in GUIDE
    assert "Secret" not in {item["kind"] for item in OBJECTS}


def test_the_pods_reach_names_and_https_and_nothing_else() -> None:
    names, bucket = find(OBJECTS, "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert names["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert bucket == {"ports": [{"port": 443}]}
    assert "egress" not in find(PLAIN, "NetworkPolicy")["spec"]


def test_the_pods_have_memory_for_the_rows_of_all_workers() -> None:
    settings = read_settings(OBJECTS)
    rows = settings.workers * settings.inference_log_rows * 2_000 / 2**20
    for kind in ("requests", "limits"):
        assert memory(kind) - memory(kind, PLAIN) >= rows


def test_the_guides_patch_writes_to_a_claim_instead(tmp_path: Path) -> None:
    shutil.copytree(HERE, tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    section = GUIDE.partition("### In a volume")[2]
    patches = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])
    file = tmp_path / "k8s/overlays/production/kustomization.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | patches), encoding="utf-8")
    done = subprocess.run(["kubectl", "kustomize", file.parent], check=True, capture_output=True, text=True)
    objects = list(yaml.safe_load_all(done.stdout))
    place = environment(objects)["CHESTCT_INFERENCE_LOG"]
    (mount,) = (mount for mount in container(objects)["volumeMounts"] if mount["mountPath"] == place)
    (volume,) = (volume for volume in pod(objects)["volumes"] if volume["name"] == mount["name"])
    assert volume["persistentVolumeClaim"] == {"claimName": "chestct-inference-log"}
    assert not mount.get("readOnly", False)
