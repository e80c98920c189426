"""Makes a model: from a folder of chest-CT slices to a checked ONNX graph and its card in the BentoML model store."""
