"""Answers requests with one stored model, over HTTP and gRPC.

A request comes in by `http` or `rpc`. `open_inference` and `tensors` read it if it speaks the Open Inference Protocol.
`inference` decodes, queues and scores its images. `telemetry` and `inference_log` note what became of it. `supervision`
replaces workers that die or hang. service.py puts these parts together.
"""

from chestct import interrupts

interrupts.report_in_one_line()
