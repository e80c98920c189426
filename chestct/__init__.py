"""What the pipeline, the service, the archive and the DICOM node share: pixels, graph, card, prediction."""

__version__ = "0.2.0"
"""The project's version; package, bento, image and API take it from here."""
