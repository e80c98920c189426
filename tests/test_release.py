"""The released model is complete, fits its card, and rejects images that are no chest CT."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from chestct.arithmetic import CloseCalls
from chestct.card import DISCLAIMER, ModelCard
from chestct.digests import SUMS, check_sums
from chestct.engine import Engine, has_instructions, load
from chestct.image import decode
from chestct.prediction import Prediction, decide
from chestct.store import CARD, GRAPH, tag_of
from load_tests.images import phantom
from pipeline.core import paths
from pipeline.judging.worst_style import worst_style

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "release"
XRAYS = Path(__file__).parents[2] / "shared" / "data" / "chest-xray"


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard.read(RELEASE / CARD)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(RELEASE / GRAPH)


@pytest.fixture(scope="module")
def faster(card: ModelCard) -> Engine:
    """The engine of the service."""
    return load(RELEASE / GRAPH, card, batch_sizes=(1, 2))


def test_the_graph_is_the_one_the_card_describes(card: ModelCard) -> None:
    graph = (RELEASE / GRAPH).read_bytes()
    assert hashlib.sha256(graph).hexdigest() == card.lineage.model_sha256
    assert len(graph) < 10_000_000


def test_its_files_are_those_of_its_list_of_digests() -> None:
    names = [line.split("  ")[1] for line in (RELEASE / SUMS).read_text(encoding="utf-8").splitlines()]
    assert names == sorted(path.name for path in RELEASE.iterdir() if path.name != SUMS)
    check_sums(RELEASE, *names)


def test_the_key_figures_in_git_are_its_own(card: ModelCard) -> None:
    run = ROOT / paths.RUN  # git ignores it
    if run.exists() and json.loads(run.read_bytes())["run_id"] != card.lineage.run_id:
        pytest.skip("a training here has written the figures of its own model")
    figures = json.loads((ROOT / paths.KEY_FIGURES).read_bytes())
    found, worst = card.metrics["out_of_fold"], worst_style(card.styles)
    known = {name: getattr(found, name).value for name in ("accuracy", "macro_f1", "cancer_auc", "calibration_error")}
    known |= {"accepted": 1 - found.rejected - found.referred, "style_kept": worst["style_kept"]}
    assert figures == pytest.approx({**known, "style_wrong": worst["style_accepted_otherwise"]}, abs=5e-5)


def test_it_was_trained_on_real_images_by_committed_code(card: ModelCard) -> None:
    assert not card.synthetic
    assert not card.lineage.git_commit.endswith("-dirty")
    assert not card.lineage.trained_commit.endswith("-dirty")
    assert card.disclaimer == DISCLAIMER
    assert {"out_of_fold", "test", "test_new_scans"} <= card.metrics.keys()


def test_probabilities_follow_from_the_heat_maps_the_bias_and_the_temperature(card: ModelCard, engine: Engine) -> None:
    shape = (3, card.input.height, card.input.width, card.input.channels)
    scores = engine.infer(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    logits = scores.heatmaps.mean(axis=(2, 3)) + np.array(card.logit_bias)
    exponents = np.exp(card.scaling.apply(logits))
    assert scores.probabilities == pytest.approx(exponents / exponents.sum(axis=1, keepdims=True), abs=1e-3)


def test_it_is_served_in_int8_where_the_cpu_has_instructions_for_it(card: ModelCard, faster: Engine) -> None:
    assert card.int8 is not None
    assert (faster.arithmetic == "int8") == has_instructions("int8")


def test_each_range_of_int8_is_of_a_dense_convolutions_input(card: ModelCard) -> None:
    assert card.int8 is not None
    *convolutions, _ = (node for node in onnx.load(RELEASE / GRAPH).graph.node if node.op_type == "Conv")
    groups = [{each.name: each.i for each in node.attribute}.get("group", 1) for node in convolutions]
    dense = [node.input[0] for node, count in zip(convolutions, groups, strict=True) if count == 1]
    assert list(card.int8.ranges) == [name for name in dict.fromkeys(dense) if name != convolutions[0].input[0]][1:]
    assert all(low <= 0 < high for low, high in card.int8.ranges.values())


def test_what_is_served_differs_a_little_from_float32_and_not_with_the_batch(
    card: ModelCard, engine: Engine, faster: Engine
) -> None:
    pixels = np.stack([decode(phantom(seed), card.input).pixels for seed in range(4)])
    exact, together = engine.infer(pixels), faster.infer(pixels)
    moved = float(np.abs(together.probabilities - exact.probabilities).max())
    assert moved < 0.1
    assert (moved > 1e-4) == (faster.arithmetic != "float32"), "in float32 both are the same but for the order of sums"
    alone = np.concatenate([faster.infer(image[np.newaxis]).probabilities for image in pixels])
    assert together.probabilities == pytest.approx(alone, abs=1e-5)


def test_rounding_decides_no_close_call(card: ModelCard, engine: Engine) -> None:
    pixels = np.stack([decode(phantom(seed), card.input).pixels for seed in range(4)])
    assert card.int8 is not None
    options = {"arithmetic": "int8", "ranges": card.int8.ranges, "close_calls": CloseCalls(1.1)}
    always = Engine(RELEASE / GRAPH, batch_sizes=(4,), **options)
    for exact, again in zip(engine.infer(pixels), always.infer(pixels), strict=True):
        assert again == pytest.approx(exact, rel=1e-3, abs=1e-4), "all are closer than 1.1, so all are computed again"


@pytest.fixture(scope="module")
def drawn(card: ModelCard, engine: Engine) -> dict[str, Prediction]:
    """The answers to the page's samples by the names of their files."""
    answers = {}
    for file in sorted((ROOT / "serving/http/page/samples").iterdir()):
        picture = decode(file.read_bytes(), card.input)
        (probabilities,), (ood_score,), (chest_ct,), _ = engine.infer(picture.pixels[np.newaxis])
        answers[file.stem] = decide(card, probabilities, ood_score, chest_ct, picture.facts, request_id="", model="")
    return answers


def test_the_samples_show_every_kind_of_answer_and_no_lesion_is_no_cancer(drawn: dict[str, Prediction]) -> None:
    kinds = {(answer.decision, answer.label is None) for answer in drawn.values()}
    assert kinds == {("accept", False), ("refer", False), ("refer", True), ("reject", True)}
    assert drawn["drawn-clear"].label == "normal"
    assert drawn["drawn-cavity"].reasons == ("unfamiliar",)


def test_its_answers_are_those_of_readme_and_the_first_tutorial(drawn: dict[str, Prediction]) -> None:
    landscape, drawing = drawn["drawn-landscape"], drawn["drawn-mass"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in ({"decision": drawing.decision, "label": drawing.label}, {"reasons": drawing.reasons}):
        assert json.dumps(part)[1:-1] in readme
    (confidence,) = re.findall(r'"confidence": ([\d.]+)', readme)
    assert float(confidence) == pytest.approx(drawing.confidence, abs=0.02)
    tutorial = (ROOT / "docs/tutorials/first-prediction.md").read_text(encoding="utf-8")
    (shown,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", tutorial, re.DOTALL))
    assert shown["model"] == tag_of(RELEASE / CARD)
    assert (shown["decision"], shown["label"]) == (drawing.decision, drawing.label)
    assert shown["probabilities"] == pytest.approx(drawing.probabilities, abs=0.01)
    assert (shown["ood_score"], shown["chest_ct"]) == pytest.approx((drawing.ood_score, drawing.chest_ct), abs=0.05)
    assert all(f"`{reason}`" in tutorial for reason in landscape.reasons)


@pytest.mark.skipif(not XRAYS.is_dir(), reason="needs the chest X-rays of ../shared, which are not in the project")
def test_chest_x_rays_are_rejected(card: ModelCard, faster: Engine) -> None:
    files = sorted(XRAYS.glob("**/*.jpg"))
    assert len(files) > 50
    scores = faster.infer(np.stack([decode(path.read_bytes(), card.input).pixels for path in files]))
    rejected = scores.chest_ct < card.thresholds.chest_ct_limit
    assert rejected.all(), f"{(~rejected).sum()} of {len(files)} are taken for chest CT; trust.md says none"
