"""The contract shared by the training pipeline and the service: pixels, graph, card, prediction."""

__version__ = "0.1.0"
