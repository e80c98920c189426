"""The watched facts, read from an image's facts and scores, and counted in their bins."""

import numpy as np
import pytest

from chestct.watched import EDGES, INPUT, SCORES, Scores, count, measure
from tests.graphs import plain_facts

SCORED = Scores(np.array([0.1, 0.7, 0.2], np.float32), ood_score=1.8, ood_limit=2.4, chest_ct=0.98)


def test_each_fact_is_read_from_where_it_comes_from() -> None:
    facts = plain_facts(width=300, height=410, tissue=111.0, air=21.0, body=0.9, contrast=51.0, blockiness=1.25)
    assert measure(facts, SCORED) == pytest.approx(
        {
            "input_side": 410,
            "input_tissue": 111,
            "input_air": 21,
            "input_body": 0.9,
            "input_contrast": 51,
            "input_blockiness": 1.25,
            "familiarity": 0.75,
            "chest_ct": 0.98,
            "confidence": 0.7,
        }
    )


def test_pixels_without_a_picture_have_scores_alone() -> None:
    assert list(measure(None, SCORED)) == ["familiarity", "chest_ct", "confidence"]


def test_an_upper_edge_belongs_to_its_bin_as_in_a_prometheus_histogram() -> None:
    assert EDGES["input_body"] == (0.7, 0.8, 0.88, 0.93, 0.96, 0.98)
    assert count("input_body", [0.0, 0.7, 0.71, 0.8, 0.98, 0.99, 1.0]).tolist() == [2, 2, 0, 0, 0, 1, 2]
    assert count("input_body", []).tolist() == [0] * 7


def test_names_differ_and_edges_ascend() -> None:
    assert len(EDGES) == len(INPUT) + len(SCORES)
    assert all(edges == tuple(sorted(set(edges))) for edges in EDGES.values())
