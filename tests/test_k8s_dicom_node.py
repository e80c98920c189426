"""The manifests of the DICOM node agree with its settings."""

from dicom_node.settings import PREFIX, Settings
from tests.manifests import find, rendered


def test_the_dicom_node_has_its_settings_its_ports_and_its_spool() -> None:
    objects = rendered("production", ("dicom-node",))
    data = find(objects, "ConfigMap", "chestct-dicom-node-.*")["data"]
    read = Settings.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in data.items()})
    assert read.service.host == find(objects, "Service")["metadata"]["name"]
    spec = find(objects, "StatefulSet", "chestct-dicom-node")["spec"]
    assert spec["replicas"] == 1
    inside = spec["template"]["spec"]["containers"][0]
    assert {port["name"]: port["containerPort"] for port in inside["ports"]} == {
        "dicom": read.port,
        "node-http": read.http_port,
    }
    (mount,) = [mount for mount in inside["volumeMounts"] if read.spool.is_relative_to(mount["mountPath"])]
    (claim,) = spec["volumeClaimTemplates"]
    assert mount["name"] == claim["metadata"]["name"]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    assert size * 2**30 > read.max_spool_bytes
    grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > read.drain_seconds + read.request_timeout
    assert int(inside["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30 >= (
        212 * 2**20 + 3 * read.max_associations * read.max_instance_bytes
    )
    labels = spec["template"]["metadata"]["labels"]
    assert find(objects, "Service", "chestct-dicom-node")["spec"]["selector"] == labels
    assert not find(objects, "Service")["spec"]["selector"].items() <= labels.items()
