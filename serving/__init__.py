"""Answers requests with one stored model, over HTTP and gRPC."""
