"""Judges the running service under load, bad input and faults. Each command ends in PASS or FAIL.

benchmarks/ measures speed and writes figures. It may import from here; nothing here imports from benchmarks/.
"""

from chestct import interrupts

interrupts.report_in_one_line()
