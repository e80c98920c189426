"""The bench: reading wrk's output, the figures, fallen ratios, and the document."""

import math
import re
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import bench, bench_report, figures, footprint, grpc_load, payloads, tail, wrk
from benchmarks.figures import Row
from benchmarks.payloads import Post
from benchmarks.wrk import Sample
from chestct.engine import Scores
from chestct.store import StoredModel
from load_tests import traffic
from load_tests.images import SIZE, pictures
from load_tests.server import ROOT, free_ports
from load_tests.verdict import BAD_INPUT, LoadError
from serving.settings import Settings

GOOD = (
    '{"requests": 300, "microseconds": 2000000, "p50": 12500, "p99": 40000, '
    '"connect": 0, "read": 0, "write": 0, "timeout": 0, "status": 0}\n'
)
URL = "http://127.0.0.1:1"

RESULTS = {
    Row("http", 1): [Sample(90, 10, 12), Sample(90, 11, 12)],
    Row("http", 16): [Sample(200, 80, 90), Sample(220, 70, 80)],
    Row("paced", 0): [Sample(140, 12, 30), Sample(150, 12, 44)],
    Row("paced-loop", 0): [Sample(140, 6, 15), Sample(150, 6, 11)],
    Row("fastapi-engine", 16): [Sample(160, 100, 110), Sample(200, 100, 110)],
    Row("fastapi", 16): [Sample(100, 160, 170), Sample(88, 160, 170)],
    Row("decode-infer", 1): [Sample(250), Sample(240)],
    Row("decode-infer", 2): [Sample(240), Sample(275)],
}


def test_what_is_sent_has_as_many_close_calls_as_real_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    even, sure = [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]
    probabilities = np.array([even if index % 5 == 0 else sure for index in range(payloads.CANDIDATES)], np.float32)

    class StubEngine:
        def __init__(self, graph: Path) -> None:
            pass

        def infer(self, pixels: NDArray[np.uint8]) -> Scores:
            assert len(pixels) == payloads.CANDIDATES
            zeros = np.zeros(len(pixels), np.float32)
            return Scores(probabilities, zeros, zeros, probabilities[..., None, None])

    monkeypatch.setattr(payloads, "Engine", StubEngine)
    sent = payloads.usual_pictures(StoredModel("chestct:released", ROOT / "release"))
    drawn = pictures(payloads.CANDIDATES)
    assert [drawn.index(picture) % 5 == 0 for picture in sent].count(True) == payloads.CLOSE_CALLS
    assert len(sent) == payloads.PICTURES == len(set(sent))


def test_wrk_s_last_line_is_the_sample() -> None:
    sample = wrk.parse(f"Running 2s test @ {URL}\n  1 threads and 16 connections\n{GOOD}", URL)
    assert sample == Sample(rate=150, p50=12.5, p99=40)


@pytest.mark.parametrize("fault", wrk.FAULTS)
def test_one_answer_that_is_not_good_is_no_verdict(fault: str) -> None:
    with pytest.raises(LoadError, match=rf"300 answers and the faults {{'{fault}': 1}}"):
        wrk.parse(GOOD.replace(f'"{fault}": 0', f'"{fault}": 1'), URL)


@pytest.mark.parametrize("output", ["", "unable to connect", "{}"])
def test_without_wrk_s_result_there_is_no_verdict(output: str) -> None:
    with pytest.raises(LoadError, match=URL):
        wrk.parse(output, URL)


def test_what_wrk_says_of_its_failure_is_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "wrk"
    program.write_text("#!/bin/sh\necho unable to connect to the server >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match="got 'unable to connect to the server'"):
        wrk.load(URL, tmp_path, connections=1, seconds=1)


@pytest.mark.parametrize(("started", "share"), [(-3, 0), (-1, 0.5), (1, 1), (4.5, 0.25), (7, 0)])
def test_a_call_counts_by_its_part_of_the_measurement(started: float, share: float) -> None:
    assert grpc_load.share_within(started, started + 2, begin=0, end=5) == share


def test_one_grpc_answer_that_is_not_good_is_no_verdict() -> None:
    (port,) = free_ports(1)  # no server listens there
    with pytest.raises(LoadError, match="expected good answers alone, got UNAVAILABLE"):
        traffic.run(grpc_load.load(f"127.0.0.1:{port}", [b""], connections=2, warm_up=0, seconds=5))


def test_without_wrk_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert bench.main([]) == BAD_INPUT
    assert capsys.readouterr().err == "bench: wrk is not installed: apt-get install wrk\n"


def test_requests_are_written_byte_by_byte(tmp_path: Path) -> None:
    body = bytes(range(256))
    Post("/predict", [({"Content-Type": "image/png"}, body), ({}, b"")]).write("http://host:1", tmp_path / "new")
    head = b"POST /predict HTTP/1.1\r\nHost: host:1\r\nContent-Type: image/png\r\nContent-Length: 256\r\n\r\n"
    assert (tmp_path / "new/0").read_bytes() == head + body
    assert (tmp_path / "new/1").read_bytes().endswith(b"Content-Length: 0\r\n\r\n")


def test_ratios_are_of_one_round_and_of_the_faster_batch() -> None:
    values = figures.compute(RESULTS)
    assert values == {
        "fastapi": [2, 2.5],
        "fastapi_engine_16": [1.25, 1.1],
        "bare_loop": [200 / 250, 220 / 275],
        "tail": [2, 4],
    }


def test_what_is_compared_over_16_connections_comes_close_together() -> None:
    others = [Row(name, 16) for name in (*bench.OURS, "one-worker", *bench.PEERS)]
    loops = [Row(name, batch) for name in bench_report.LOOPS for batch in (1, 2)]
    ends = [Row(name, count) for name in ("http", "fastapi-engine") for count in (1, 64)]
    order = sorted((*loops, *ends, *others), key=bench.turn)
    assert order[:2] == [Row("http", 1), Row("fastapi-engine", 1)]
    assert order[-2:] == [Row("http", 64), Row("fastapi-engine", 64)]
    here = order.index(Row("http", 16))
    near = {row.contender for row in order[here - 3 : here + 4]}
    assert near == {"one-worker", "decode-infer", "http", "fastapi-engine", "litserve", "fastapi"}


def test_every_figure_says_which_way_is_good() -> None:
    for name, figure in figures.read_figures().items():
        assert figure.holds(figure.aim, figure.must), name
        worse = figure.must * (0.9 if figure.better == "higher" else 1.1)
        assert [figure.verdict([value]) for value in (figure.aim, figure.must, worse)] == ["aim", "must", "missed"]
        assert figure.verdict([figure.aim, figure.must]) == "must"
        assert figure.verdict([figure.aim, worse]) == "not shown"
        assert figure.worse_by(worse, figure.must) == pytest.approx(0.1)


def test_the_interval_of_the_median_lies_between_two_values_in_order() -> None:
    assert figures.interval([7.0]) == (7, 7)
    assert figures.interval([3, 1, 2, 5, 4]) == (1, 5)
    # The table of the sign test: with 20 values, the 6th and the 15th; with 24, the 7th and the 18th.
    assert figures.interval(range(1, 21)) == (6, 15)
    assert figures.interval(range(1, 25)) == (7, 18)


def test_a_ratio_falls_if_all_of_its_interval_is_worse_whichever_way_is_good() -> None:
    values = {"fastapi": [1.0, 1.7, 1.8], "tail": [2.3, 2.5], "bentoml": [2.0]}
    assert figures.find_fallen(values, {"fastapi": 2.1, "tail": 2.1, "bentoml": 1.0, "flask": 50.0}) == []
    fallen = figures.find_fallen(values, {"fastapi": 2.2, "tail": 1.9})
    assert [line.partition(":")[0] for line in fallen] == ["fastapi", "tail"]
    assert fallen[0] == "fastapi: 1.70 (1.00 to 1.80), accepted 2.20: all of it is more than 15% worse"


def test_what_is_accepted_stays_beside_what_was_not_measured_and_other_machines(tmp_path: Path) -> None:
    path = tmp_path / "ratios.yaml"
    assert figures.read_ratios(path) == {}
    small = {"arithmetic": "float32", "cores": "2", "commit": "this commit"}
    large = {"arithmetic": "int8", "cores": "8", "commit": "another commit"}
    figures.accept({"flask": [50.0], "fastapi": [1.0]}, small | {"commit": "an older commit"}, path)
    figures.accept({"flask": [70.0]}, large, path)
    figures.accept({"fastapi": [1.0, 2.0, 9.0], "ready": [3.0]}, small, path)
    expected = {"float32, 2 cores": {"flask": 50, "fastapi": 2}, "int8, 8 cores": {"flask": 70}}
    assert figures.read_ratios(path) == expected
    assert "this commit" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("text", ["- 1", "fastapi: 1", "a: {fastapi: fast}", "a: {fastapi: 0}", "{"])
def test_ratios_that_make_no_sense_are_said_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ratios.yaml"
    path.write_text(text)
    with pytest.raises(LoadError, match="expected ratios by machine and name") as error:
        figures.read_ratios(path)
    assert "\n" not in str(error.value)


def test_the_accepted_ratios_are_figures() -> None:
    known = {name for name, figure in figures.read_figures().items() if figure.unit == "x"}
    for ratios in figures.read_ratios().values():
        assert ratios.keys() <= known


def test_the_document_has_the_figures_the_measurements_and_the_machine(tmp_path: Path) -> None:
    values = {**figures.compute(RESULTS), "memory": [212.4]}
    images = [("image/png", bytes(90_000)), ("image/jpeg", bytes(50_000))]
    machine = {**footprint.describe_machine(), "settings": bench_report.describe_settings(Settings.read())}
    report = bench_report.Report(machine, RESULTS, values, images, seconds=1, rounds=2, pairs=7, load=3)
    folder = tmp_path / "new"
    bench_report.write(report, folder)

    text = (folder / "benchmarks.md").read_text()
    assert "| 2.25 (2.00 to 2.50) x | >= 2.2 x | >= 2.8 x | not shown |" in text
    assert "| 212 MB | <= 300 MB | <= 220 MB | aim |" in text
    assert "| service: image file over HTTP | 16 | 210.0 (200.0 to 220.0) | 75.0 | 85.0 | 0.00 |" in text
    assert "| bare loop: decode and infer | batch 2 | 257.5 (240.0 to 275.0) |  |  |  |" in text
    assert f"| kernel | {machine['kernel']} |" in text
    assert "1 PNG and 1 JPEG" in text
    assert "50 to 90 KB, 70 KB on average" in text
    assert "turn, 7 times." in text
    assert "this run had only 2 of 9 rounds and 3.0 other processes" in text
    assert "Not to be relied on" not in bench_report.document(report._replace(rounds=9, load=0))
    assert "nan" not in text
    assert (folder / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert any("service: image file over HTTP" in line and "210.0" in line for line in bench_report.table(report))


def test_ratios_are_accepted_only_of_a_run_to_be_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[tuple[object, ...]] = []
    monkeypatch.setattr(figures, "accept", lambda *arguments: accepted.append(arguments))
    machine = {"commit": "abc", "arithmetic": "int8", "cores": "2"}
    report = bench_report.Report(machine, RESULTS, {"fastapi": [2.0]}, [], seconds=5, rounds=9, pairs=24, load=3)
    with pytest.raises(LoadError, match=r"3\.0 other processes"):
        bench.accept(report)
    bench.accept(report._replace(load=0))
    assert accepted == [({"fastapi": [2.0]}, machine)]


def test_the_pictures_are_the_same_each_time_and_as_large_as_real_ones() -> None:
    files = pictures(8)
    assert files == pictures(8)
    assert [kind for kind, _ in files] == ["image/png"] * 7 + ["image/jpeg"]
    assert all(25_000 < len(data) < 160_000 for _, data in files)
    assert SIZE == (414, 282)


def test_peers_must_give_the_service_s_probabilities() -> None:
    ours = {"probabilities": {"a": 0.9, "b": 0.1}}
    bench.check_same({"ours": ours, "fastapi": {"probabilities": {"a": 0.89, "b": 0.11}}})
    with pytest.raises(LoadError, match=r"bentoml: .* 0\.200 apart"):
        bench.check_same({"ours": ours, "bentoml": {"probabilities": {"a": 0.7, "b": 0.3}}})


@pytest.mark.skipif(shutil.which("strip") is None, reason="no strip here (Debian: apt-get install binutils)")
def test_the_installed_size_is_what_the_image_keeps_of_every_pinned_distribution(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("numpy==1 \\\n    --hash=sha256:0\nabsent==1 ; implementation_name == 'pypy' \\\n")
    whole = sum(file.size or 0 for file in metadata.files("numpy") or []) / 1e6
    assert 20 < footprint.installed_size(path) < 0.85 * whole  # a fifth is numpy's tests, stubs and headers


def test_a_pinned_distribution_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("absent==1 \\\n")
    with pytest.raises(LoadError, match="absent"):
        footprint.installed_size(path)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here (Debian: apt-get install wrk)")
@pytest.mark.usefixtures("tiny_store")
def test_a_short_run_measures_service_loop_and_peers_and_writes_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "read_ratios", dict)
    monkeypatch.setattr(bench, "STARTS", 1)
    monkeypatch.setattr(tail, "MOST_WAVER", math.inf)  # no test may depend on how busy the machine is
    monkeypatch.setattr(bench, "SHARE", 0.05)
    peers = ["fastapi", "fastapi-engine", "litserve", "bentoml"]
    arguments = ["--seconds", "4", "--rounds", "1", "--pairs", "1", "--folder", str(tmp_path)]
    assert bench.main([*arguments, "--only", *bench.OURS, "loops", *peers]) == 0, capsys.readouterr().err
    text = (tmp_path / "benchmarks.md").read_text()
    for name in (*bench.OURS, "decode-infer", "infer", *peers, "paced", "paced-loop"):
        assert f"| {bench_report.WORDS[name]} |" in text
    assert len(re.findall(r"\| (?:missed|must|aim|not shown) \|$", text, re.MULTILINE)) == 14
