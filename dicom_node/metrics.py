"""The metrics of the node. No label holds anything of a patient, a study or a peer."""

from typing import Final

from prometheus_client import Counter, Gauge, make_wsgi_app

RECEIVED: Final = Counter(
    "dicom_node_received",
    "Instances by what became of them: stored, duplicate, conflict, other_class, not_ct, malformed, spool_full.",
    ("outcome",),
)
ASSOCIATIONS_REJECTED: Final = Counter(
    "dicom_node_associations_rejected", "Associations that were rejected because of their AE title or address."
)
ASSOCIATIONS_ABORTED: Final = Counter(
    "dicom_node_associations_aborted", "Associations that were ended because they sent too much at once."
)
COMPLETE: Final = Counter("dicom_node_complete", "Revisions of series that became complete.")
SCORED: Final = Counter(
    "dicom_node_scored", "Slices by what the service made of them: accept, refer, reject, error.", ("outcome",)
)
RETURNED: Final = Counter("dicom_node_returned", "Revisions of series whose results reached the PACS.")
FAILED: Final = Counter("dicom_node_failed", "Failed attempts by step: score, report, send.", ("step",))
SPOOL_BYTES: Final = Gauge("dicom_node_spool_bytes", "Bytes in the spool.")
SPOOL_SERIES: Final = Gauge("dicom_node_spool_series", "Series in the spool that are not returned yet.")
OLDEST_SECONDS: Final = Gauge(
    "dicom_node_oldest_seconds", "Seconds since the last slice of the series that waits longest; 0 if none waits."
)
DEAD_LETTERS: Final = Gauge("dicom_node_dead_letters", "Series that were given up.")

APPLICATION: Final = make_wsgi_app()
"""Answers /metrics (WSGI)."""
