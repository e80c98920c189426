"""The network as an ONNX graph: its export and its rounding to int8."""
