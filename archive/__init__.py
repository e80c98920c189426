"""Scores archives of chest-CT slices without a server, with the code that the service answers with: chestct.

`command` is the command line. `plans` lists the files that `sources` finds, `workers` have `scoring` make a row of
`rows` for each, and `checks` proves that none is missing.
"""

from chestct import interrupts

interrupts.report_in_one_line()
