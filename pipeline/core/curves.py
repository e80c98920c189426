"""The curves of a training while it runs. They never end the training."""

import sys
from collections.abc import Mapping

from pipeline.core import tracking
from pipeline.core.errors import TrackingError


class Curves:
    """Sends the losses of each epoch to the MLflow run. If MLflow fails, says so once, and sends nothing more.

    tracking.log_training adds what is missing when the training has ended.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._lost = False

    def add(self, network: str, epoch: int, row: Mapping[str, float]) -> None:
        """Add the losses in `row` after `epoch`, counted from 1, to the curves of `network`, such as `fold_1`."""
        if self._lost:
            return
        try:
            tracking.log_metrics(self._run_id, tracking.curve_points(network, row), step=epoch)
        except TrackingError as error:
            self._lost = True
            print(f"train: {error}; the training goes on, and its curves follow at the end", file=sys.stderr)
