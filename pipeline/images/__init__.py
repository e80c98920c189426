"""The data set: its files, classes, duplicates and look-alikes, and drawn phantoms."""
