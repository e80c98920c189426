"""Measures the CPU time of the event loop's thread for each step of a request. `python -m benchmarks.steps` runs it."""
