"""`make hold`: checks each promise about bad input, slow clients and faults by a real run."""
