"""`make hold`: what the service promises about bad input, slow clients and faults, each by a real run."""
