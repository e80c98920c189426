"""What the service records about requests: their records, metrics, traces and the log."""
