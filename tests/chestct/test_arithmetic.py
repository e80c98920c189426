"""Which answers are too close for a rounded arithmetic."""

import numpy as np

from chestct.arithmetic import CloseCalls

PROBABILITIES = np.array(
    [[0.5, 0.498, 0.002], [0.5, 0.45, 0.05], [0.2, 0.756, 0.044], [0.1, 0.1, 0.8], [0.05, 0.744, 0.206]], np.float32
)


def test_two_classes_of_nearly_the_same_probability_are_a_close_call() -> None:
    assert CloseCalls(0.01).find(PROBABILITIES).tolist() == [0]
    assert CloseCalls(0).find(PROBABILITIES).tolist() == []


def test_a_probability_near_the_limit_of_its_class_is_a_close_call_on_either_side() -> None:
    limits = (0.9, 0.75, 0.95)
    assert CloseCalls(0, 0.01, limits).find(PROBABILITIES).tolist() == [2, 4]
    assert CloseCalls(0.01, 0.01, limits).find(PROBABILITIES).tolist() == [0, 2, 4]
