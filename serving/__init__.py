"""Answers requests with one stored model, over HTTP and gRPC."""

from chestct import interrupts

interrupts.report_in_one_line()
