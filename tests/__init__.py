"""The tests, in the folders of the code, and the commands that run those with environments of their own."""

from chestct import interrupts

interrupts.report_in_one_line()
