"""Makes a model: from a folder of chest-CT slices to a checked ONNX graph and its card in the BentoML model store."""

import os

# TensorFlow reads this while it is imported, and otherwise fills the terminal with notes on its build.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
