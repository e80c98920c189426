"""The engine: the same scores for any batch and number of threads, and close calls in float32."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chestct import engine as engines
from chestct.arithmetic import ARITHMETICS, CloseCalls, Int8, Rounding
from chestct.card import InputSpec, ModelCard
from chestct.engine import Engine, has_instructions, load
from chestct.image import decode, encode_png
from tests.graphs import (
    CHEST_CT_LIMIT,
    OOD_LIMIT,
    narrow_picture,
    tiny_graph,
    tiny_picture,
    tiny_scores,
    unfamiliar_picture,
)
from tests.server import ROOT

RELEASED = ROOT / "release" / "model.onnx"
CARD = ModelCard.read(ROOT / "release" / "card.json")
RANGES = {
    node.input[0]: (0.0, 6.0) for node in onnx.load(RELEASED).graph.node if node.op_type == "Conv" and node.input[0]
}
"""Those of ReLU6 for every convolution, so they cut off what the others pass on."""
COST = {"agreement": 1.0, "same_decision": 1.0, "accuracy_fall": 0.0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(tiny_graph(tmp_path_factory.mktemp("graph") / "model.onnx"), threads=1, batch_sizes=(1, 4))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 11])
def test_any_number_of_images_gets_its_own_scores(engine, count):
    labels = np.arange(count) % 4
    scores = engine.infer(np.stack([tiny_picture(label) for label in labels]))
    assert scores.probabilities.shape == (count, 4)
    assert scores.ood_score.shape == scores.chest_ct.shape == (count,)
    assert scores.heatmaps.shape[:2] == (count, 4)
    assert np.array_equal(scores.probabilities.argmax(axis=1), labels)
    assert scores.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_each_output_is_read_by_its_name(engine):
    pictures = np.stack([tiny_picture(2), unfamiliar_picture(), narrow_picture()])
    scores = engine.infer(pictures)
    for row, expected in enumerate(map(tiny_scores, pictures)):
        assert scores.probabilities[row] == pytest.approx(expected[0], abs=1e-5)
        assert (scores.ood_score[row], scores.chest_ct[row]) == pytest.approx(expected[1:], abs=1e-5)
    assert (scores.ood_score > OOD_LIMIT).tolist() == [False, True, False]
    assert (scores.chest_ct < CHEST_CT_LIMIT).tolist() == [False, False, True]


@pytest.mark.parametrize("picture", [*map(tiny_picture, range(4)), unfamiliar_picture(), tiny_picture(1, marks=49)])
def test_the_pictures_of_the_tests_are_standard_pictures(picture):
    assert np.array_equal(decode(encode_png(picture[:, :, 0]), InputSpec(height=32, width=32)).pixels, picture)


def test_scores_stay_as_they_were_when_the_engine_runs_again(engine):
    first = engine.infer(tiny_picture(0)[None])
    kept = first.probabilities.copy()
    engine.infer(tiny_picture(3)[None])
    assert np.array_equal(first.probabilities, kept)


def test_the_spatial_mean_of_a_heat_map_is_the_logit(engine):
    scores = engine.infer(np.stack([tiny_picture(label) for label in range(4)]))
    logits = scores.heatmaps.mean(axis=(2, 3))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert softmax == pytest.approx(scores.probabilities, abs=1e-5)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("threads_alone", [0, 1, 2])
def test_one_image_alone_gets_the_same_scores_with_any_number_of_threads(threads_alone, arithmetic):
    options = {"threads": 1, "threads_alone": threads_alone, "batch_sizes": (1, 2)}
    engine = Engine(RELEASED, arithmetic=arithmetic, ranges=RANGES, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 1), dtype=np.uint8)
    for alone, usual in zip(engine.infer_alone(pixels), engine.infer(pixels), strict=True):
        assert np.array_equal(alone, usual)


def test_a_missing_graph_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        Engine(tmp_path / "model.onnx")


def test_an_engine_with_its_smallest_graph_alone_scores_as_a_complete_one(tmp_path):
    graph = tiny_graph(tmp_path / "model.onnx")
    pictures = np.stack([tiny_picture(label) for label in (0, 1, 2, 3, 0)])
    whole = Engine(graph, threads=1, batch_sizes=(1, 4)).infer(pictures)
    engine = Engine(graph, threads=1, batch_sizes=(1, 4), only_smallest=True)
    assert engine.largest_batch == 4
    before = engine.infer(pictures)
    engine.complete()
    for expected, early, late in zip(whole, before, engine.infer(pictures), strict=True):
        assert early == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(late, expected)


@pytest.mark.parametrize("margin", [0, 1.1])
def test_a_close_call_is_computed_in_float32_also_before_the_engine_is_complete(margin):
    """The tiny graph has nothing that int8 rounds, so this takes the released one."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 1), dtype=np.uint8)
    options = {"threads": 1, "batch_sizes": (1, 2), "only_smallest": True}
    engine = Engine(RELEASED, arithmetic="int8", ranges=RANGES, close_calls=CloseCalls(margin), **options)
    exact = Engine(RELEASED, **options)
    same = np.array_equal(engine.infer(pixels).probabilities, exact.infer(pixels).probabilities)
    assert same == (margin > 0)


@pytest.mark.parametrize("allowed", [(), ("bfloat16",), ("int8",), ("int8", "bfloat16")])
@pytest.mark.parametrize("fastest", ARITHMETICS)
@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512_vnni", "avx2 avx_vnni"])
def test_the_fastest_arithmetic_is_used_that_card_cpu_and_setting_allow(allowed, fastest, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "CPU_INFO", tmp_path / "cpuinfo")
    engines.CPU_INFO.write_text(f"flags\t\t: fpu {flags}\n")
    costs = {"int8": Int8(**COST, ranges=RANGES), "bfloat16": Rounding(**COST)}
    card = CARD.model_copy(update={name: costs[name] if name in allowed else None for name in costs})
    slower = ARITHMETICS[ARITHMETICS.index(fastest) :]
    usable = {"int8": "vnni" in flags, "bfloat16": has_instructions("bfloat16")}
    expected = next((each for each in slower if each in allowed and usable[each]), "float32")
    assert load(RELEASED, card, threads=1, batch_sizes=(1,), fastest=fastest).arithmetic == expected


@pytest.mark.parametrize(
    ("close_call", "close_limit", "refer_margin", "same"),
    [(0, 0, 0, False), (1, 0, 0, True), (0, 1, 0, True), (0, 0, 1, True)],
)
def test_what_the_card_calls_close_is_computed_in_float32(
    close_call, close_limit, refer_margin, same, tmp_path, monkeypatch
):
    monkeypatch.setattr(engines, "CPU_INFO", tmp_path / "cpuinfo")
    engines.CPU_INFO.write_text("flags\t\t: avx512_vnni\n")
    thresholds = CARD.thresholds.model_copy(update={"refer_margin": refer_margin})
    changes = {"int8": Int8(**COST, ranges=RANGES), "thresholds": thresholds}
    changes |= {"close_call": close_call, "close_limit": close_limit}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 1), dtype=np.uint8)
    options = {"threads": 1, "batch_sizes": (1,)}
    found = load(RELEASED, CARD.model_copy(update=changes), **options).infer(pixels)
    exact = Engine(RELEASED, **options).infer(pixels)
    assert np.array_equal(found.probabilities, exact.probabilities) == same


def test_only_what_becomes_float32_is_turned_into_it(tmp_path):
    """A shape that is stored in 32 bits stays a shape."""
    model = onnx.load(tiny_graph(tmp_path / "model.onnx"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 4], np.int32), "shape_32"))
    last = next(node for node in model.graph.node if "probabilities" in node.output)
    last.output[:] = ["before" if name == "probabilities" else name for name in last.output]
    model.graph.node.append(helper.make_node("Cast", ["shape_32"], ["shape"], to=TensorProto.INT64))
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], ["probabilities"]))
    onnx.save(model, tmp_path / "reshaped.onnx")
    pictures = np.stack([tiny_picture(label) for label in range(4)])
    found = Engine(tmp_path / "reshaped.onnx", threads=1).infer(pictures)
    assert found.probabilities.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_without_linux_nobody_tells_whether_the_cpu_has_int8(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "CPU_INFO", tmp_path / "missing")
    assert not has_instructions("int8")
    assert has_instructions("float32")


def test_images_are_scored_while_another_thread_completes_the_engine(tmp_path):
    engine = Engine(tiny_graph(tmp_path / "model.onnx"), threads=1, batch_sizes=(1, 2, 4, 8), only_smallest=True)
    pictures = np.stack([tiny_picture(label % 4) for label in range(8)])
    with ThreadPoolExecutor() as threads:
        completion = threads.submit(engine.complete)
        labels = [engine.infer(pictures).probabilities.argmax(axis=1)]
        while not completion.done():
            labels.append(engine.infer(pictures).probabilities.argmax(axis=1))
        completion.result()
    assert all(found.tolist() == [0, 1, 2, 3, 0, 1, 2, 3] for found in labels)
