"""The container image: its bill of materials, and how a pod runs it."""

from chestct import interrupts

interrupts.report_in_one_line()
