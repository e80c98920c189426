"""The Kubernetes manifests, and the command that renders them."""

from chestct import interrupts

interrupts.report_in_one_line()
