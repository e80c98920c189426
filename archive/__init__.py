"""Scores archives of chest-CT slices without a server, with the code that the service answers with: chestct."""

from chestct import interrupts

interrupts.report_in_one_line()
