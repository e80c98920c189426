"""The network as an ONNX graph: its export, its rounding, and what rounding costs."""
