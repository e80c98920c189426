"""Replaces, kills and freezes replicas of the image behind a load balancer, while requests come over both protocols."""
