"""What is known of each request: its record, metrics, traces and the log."""
