"""A DICOM node: receives CT series, has them scored by the service over HTTP, and returns SR and Secondary Capture.

`receive` puts slices into the `spool`. When a series is complete, `worker` takes it through `score`, `report` and
`capture`, and `send`. `node` runs these with the `probes`.
"""

from chestct import interrupts

interrupts.report_in_one_line()
