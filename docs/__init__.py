"""The documentation, and the commands that write and check it."""

from chestct import interrupts

interrupts.report_in_one_line()
