"""Code shared by the training pipeline and the service: pixels, graph, card, prediction."""

__version__ = "0.2.0"
"""The project's version; package, bento, image and API take it from here."""
