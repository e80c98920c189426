"""The settings of the service: defaults that follow from the machine, and values that fit each other."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CHESTCT_"):
            monkeypatch.delenv(name)


def test_an_empty_environment_gives_one_worker_a_core_and_one_thread_each() -> None:
    settings = Settings.read()
    assert settings.workers <= len(os.sched_getaffinity(0))
    assert settings.workers * settings.engine_threads <= len(os.sched_getaffinity(0))
    assert settings.model is None


def test_fewer_workers_get_the_cores_as_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("chestct.cgroups._ROOT", tmp_path)
    monkeypatch.setenv("CHESTCT_WORKERS", "2")
    assert Settings.read().engine_threads == 4


@pytest.mark.parametrize(
    ("workers", "threads", "alone"), [("1", "1", 1), ("2", "1", 2), ("3", "1", 3), ("2", "2", 4), ("32", "1", 4)]
)
def test_an_image_alone_gets_the_threads_of_all_workers_up_to_four(
    monkeypatch: pytest.MonkeyPatch, workers: str, threads: str, alone: int
) -> None:
    monkeypatch.setenv("CHESTCT_WORKERS", workers)
    monkeypatch.setenv("CHESTCT_ENGINE_THREADS", threads)
    assert Settings.read().engine_threads_alone == alone


def test_a_containers_cpu_limit_bounds_the_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("chestct.cgroups._ROOT", tmp_path)
    assert Settings.read().workers == 2


def test_all_cores_count_if_the_system_does_not_show_the_usable_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("chestct.cgroups._ROOT", tmp_path)
    assert Settings.read().workers == 8


def test_variables_set_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHESTCT_MODEL", "chestct:abc")
    monkeypatch.setenv("CHESTCT_QUEUE_SIZE", "7")
    settings = Settings.read()
    assert (settings.model, settings.queue_size) == ("chestct:abc", 7)


def test_the_largest_body_must_fit_the_memory_of_all_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHESTCT_MAX_BODY_BYTES", "4096")
    monkeypatch.setenv("CHESTCT_MAX_BYTES_IN_FLIGHT", "2048")
    with pytest.raises(SettingsError, match=r"MAX_BYTES_IN_FLIGHT: expected MAX_BODY_BYTES, 4096, or more"):
        Settings.read()


def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHESTCT_WORKRES", "2")
    with pytest.raises(SettingsError, match=r"unknown setting CHESTCT_WORKRES; known are .*CHESTCT_WORKERS"):
        Settings.read()


@pytest.mark.parametrize(
    "name", ["CHESTCT_SERVICE_HOST", "CHESTCT_SERVICE_PORT_HTTP", "CHESTCT_PORT", "CHESTCT_PORT_3000_TCP_ADDR"]
)
def test_variables_that_kubernetes_sets_are_no_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:3000")
    assert Settings.read().grpc_port == 3001


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings.read().workers = 3  # type: ignore[misc]


@pytest.mark.parametrize(("largest", "sizes"), [("1", (1,)), ("6", (1, 2, 4, 6)), ("8", (1, 2, 4, 8))])
def test_batches_are_compiled_in_powers_of_two_up_to_the_largest(
    monkeypatch: pytest.MonkeyPatch, largest: str, sizes: tuple[int, ...]
) -> None:
    monkeypatch.setenv("CHESTCT_LARGEST_BATCH", largest)
    assert Settings.read().batch_sizes == sizes
