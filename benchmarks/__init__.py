"""Measures and compares speed, and writes figures: tables, pictures and settings.

load_tests/ judges the running service. This package uses its server, images and traffic.
"""

import os

from chestct import interrupts

interrupts.report_in_one_line()

# ONNX Runtime would report its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
