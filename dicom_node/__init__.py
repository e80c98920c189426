"""A DICOM node: receives CT series, has them scored by the service over HTTP, and returns SR and Secondary Capture."""

from chestct import interrupts

interrupts.report_in_one_line()
