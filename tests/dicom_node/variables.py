"""Names of the environment variables that `python -m tests.dicom_node` gives to the tests."""

SERVICE = "DICOM_TEST_SERVICE"
"""URL of a running service with the tiny model."""
SLICES = "DICOM_TEST_SLICES"
"""Folder of grey levels as .npy files."""
