"""The simulated autoscaler decides like Kubernetes', with the figures of the manifests."""

import numpy as np
import pytest
import yaml

from benchmarks import autoscaling
from benchmarks.autoscaling import CAPACITY, LEAST, MOST, START_UP, by_cpu, by_queue, simulate
from k8s.render import HERE
from serving.settings import Settings


def steady(share: float, seconds: int = 1200) -> np.ndarray:
    """Return a constant load, as a share of the capacity of the fewest pods."""
    return np.full(seconds, int(share * LEAST * CAPACITY))


@pytest.mark.parametrize("wish", [by_cpu, by_queue])
def test_a_light_load_keeps_the_fewest_pods_and_no_image_waits(wish: autoscaling.Wish) -> None:
    course = simulate(steady(0.5), wish)
    assert set(course.pods) == {LEAST}
    assert course.waiting.max() == 0


@pytest.mark.parametrize("wish", [by_cpu, by_queue])
def test_a_heavy_load_brings_pods_which_need_their_time_and_are_never_too_many(wish: autoscaling.Wish) -> None:
    course = simulate(steady(20), wish)
    assert set(course.pods[:START_UP]) == {LEAST}
    assert course.pods[-1] == MOST == course.pods.max()
    assert course.refused.sum() > 0


def test_pods_go_one_a_minute_after_five_quiet_minutes() -> None:
    course = simulate(np.concatenate([steady(4), steady(0.2, 1800)]), by_cpu)
    downs = np.flatnonzero(np.diff(course.pods) < 0)
    assert downs[0] >= 1200 + 270
    assert np.diff(downs).min() >= 60
    assert course.pods[-1] == LEAST


def test_the_queue_is_seen_sooner_than_the_cpu_it_fills() -> None:
    burst = np.concatenate([steady(0.5, 300), steady(3, 600)])
    late = {wish: int(burst[simulate(burst, wish).latency > 1].sum()) for wish in (by_cpu, by_queue)}
    assert late[by_queue] < late[by_cpu]


def test_its_figures_are_those_of_the_manifests() -> None:
    read = {
        name: yaml.safe_load((HERE / name).read_text(encoding="utf-8"))["spec"]
        for name in ("base/horizontalpodautoscaler.yaml", "components/keda/scaledobject.yaml")
    }
    hpa, keda = read.values()
    base = yaml.safe_load((HERE / "base/kustomization.yaml").read_text(encoding="utf-8"))
    assert "CHESTCT_WORKERS=2" in base["configMapGenerator"][0]["literals"]
    assert 2 * Settings.model_fields["queue_size"].default == autoscaling.QUEUE_A_POD
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (LEAST, MOST)
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (LEAST, MOST)
    assert hpa["metrics"][0]["resource"]["target"]["averageUtilization"] == round(200 * autoscaling.CPU_TARGET)
    assert keda["triggers"][0]["metadata"]["threshold"] == str(autoscaling.QUEUE_TARGET)
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == autoscaling.QUIET
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
