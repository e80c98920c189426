"""Makes a model: from a folder of chest-CT slices to a checked ONNX graph and its card in the BentoML model store.

A module here is a stage of dvc.yaml, or a command such as `python -m pipeline.store`. The folders hold their parts.
"""

import os

from chestct import interrupts

interrupts.report_in_one_line()

# TensorFlow reads this while it is imported, and otherwise fills the terminal with notes on its build.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# ONNX Runtime would report its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
